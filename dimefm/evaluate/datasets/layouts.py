"""Datasets in a folder: which benchmarks are there, in which layout, and how complete.

The root holds one folder per dataset, or a link to it, directly or under ``classification/``.
Layouts, tried in this order:

=================  =================================================================================
vision-datasets    ELEVATER's own: an index (Iris text or COCO json) and zip files
parquet            ``test.parquet``, ``test-*.parquet``, ``data/test-*.parquet``, ``test/*.parquet``
webdataset         ``test.tar``, ``test-*.tar``, ``test/*.tar`` with ``.cls`` or ``.npy`` (0/1)
imagefolder        ``{train,val,test}/<class>/``, or ``<class>/`` directly, which is a test split
imagenet-val       ImageNet's validation images in one folder, with Kaggle's or the kit's labels
=================  =================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.data import Rows
from dimefm.data.image_files import is_litter
from dimefm.data.rows import inside
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.benchmark import (
    FOLDER_NAMES,
    Benchmark,
    CardIndex,
    fold,
    for_folder,
    load,
    suite,
)
from dimefm.evaluate.datasets import (
    class_folders,
    imagenet_val,
    plain_layouts,
    vision_datasets,
)
from dimefm.evaluate.datasets.plain_layouts import Split
from dimefm.evaluate.guards import dataset_guard
from dimefm.runtime.text import file_key, first_few

SPLITS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Name of each split -> the words for it in the names of files and folders."""

PARENT = "classification"  # a folder of datasets in the root
SHOWN = 8
"""Files that a message lists at most."""


@dataclass(frozen=True)
class Layout:
    """One way to store a dataset: how to find the files of a split, and how to read them.

    ``tries`` are the file names that ``locate`` tries, for messages; ``{0}`` is the split.
    """

    locate: Callable[[Path, Sequence[str]], list[Path]]
    read: Callable[[Path, list[Path], Benchmark], Split]
    tries: str


LAYOUTS = {
    "vision-datasets": Layout(
        locate=vision_datasets.locate,
        read=vision_datasets.read,
        tries=vision_datasets.TRIES,
    ),
    "parquet": Layout(
        locate=plain_layouts.locate_parquet,
        read=plain_layouts.read_parquet,
        tries="{0}.parquet, {0}-*.parquet, data/{0}-*.parquet",
    ),
    "webdataset": Layout(
        locate=plain_layouts.locate_tar,
        read=plain_layouts.read_tar,
        tries="{0}.tar, {0}-*.tar, {0}/*.tar",
    ),
    "imagefolder": Layout(
        locate=class_folders.locate,
        read=plain_layouts.read_folders,
        tries="{0}/<class>/<image>",
    ),
    "imagenet-val": Layout(
        locate=imagenet_val.locate,
        read=imagenet_val.read,
        tries=imagenet_val.TRIES,
    ),
}


@dataclass(frozen=True)
class Dataset:
    """One dataset on disk: its benchmark (with the class names of this copy), folder and layout.

    ``note`` says where this copy differs from the published one, and is empty when the counts
    agree. No file outside ``root`` is read; with None, no file outside ``folder`` (as for a folder
    that is a link). ``test`` is the test split as :func:`find` read it; None means not yet read.
    ``card`` is the name of the benchmark card, None for a dataset of one's own.
    """

    benchmark: Benchmark
    folder: Path
    layout: str
    note: str = ""
    root: Path | None = None
    test: Split | None = field(default=None, repr=False, compare=False)
    card: str | None = None

    def rows(self, split: str = "test") -> tuple[Rows, np.ndarray, list[str]]:
        """Return (rows, labels, class names) of ``"train"``, ``"val"`` or ``"test"``.

        Labels are int64 [n], or 0/1 [n, C] for a multi-label benchmark, and index the class names.
        Raises DataError when the split is not found, or its labels do not fit the class names.
        """
        if split == "test" and self.test is not None:
            rows, labels, _ = self.test
        else:
            rows, labels, _ = read_split(self, split)
        return rows, labels, list(self.benchmark.classes)

    def has(self, split: str) -> bool:
        """Tell whether there is a split ``"train"``, ``"val"`` or ``"test"``."""
        return bool(LAYOUTS[self.layout].locate(self.folder, SPLITS[split]))


def find(
    root: str | Path,
    names: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    every_card: bool = False,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> tuple[list[Dataset], list[str]]:
    """Return (datasets, names without a folder) of a folder of datasets.

    ``names`` are benchmarks or folders; without them the 20 ELEVATER sets are looked for, in the
    order of their names, and then, with ``every_card``, the folders that another card claims.
    ``layout`` overrides detection for all of them. The test split of every dataset is opened and
    its labels are checked.

    Raises DataError when the root is absent or a name is neither a benchmark nor a folder. A
    dataset that cannot be read, or that two folders claim, is skipped: ``on_failure`` gets its name
    and the error. Without ``on_failure`` that error is raised.
    """
    root = Path(root)
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"unknown layout '{layout}': {did_you_mean(layout, LAYOUTS)}")
    folders = _Folders(root)
    if names is not None:
        candidates = {name: folders.asked_for(name) for name in names}
    else:
        wanted = suite()
        if every_card:
            wanted += folders.other_cards(wanted)
        candidates = {name: folders.of_card(name) for name in wanted}

    datasets: list[Dataset] = []
    missing: list[str] = []
    for name, name_folders in candidates.items():
        card = folders.card_of(name)
        if not name_folders:
            missing.append(card or name)
            continue
        own_name = every_card and names is not None and _is_folder_name(name, name_folders, card)
        shown_name = name if own_name or card is None else card
        try:
            folder = _only(shown_name, name_folders)
            with dataset_guard(folder):
                datasets.append(_open(folder, root, layout, own_name))
        except DataError as error:
            if on_failure is None:
                raise
            on_failure(shown_name, error)
    return datasets, missing


def without_card(root: str | Path) -> list[str]:
    """Return the names of the folders in ``root`` that have no card, sorted.

    They are scored when they are named.
    """
    cards = CardIndex()
    names = {folder.name for folder in _folders(Path(root)) if not is_litter(folder.name)}
    return sorted(name for name in names - {PARENT} if cards.of(name) is None)


class _Folders:
    """The folders that may be datasets, those in ``root`` and ``root/classification``, by name and
    by the card that claims them.
    """

    def __init__(self, root: Path):
        self.root = root
        self._cards = CardIndex()
        self._by_name: dict[str, list[Path]] = {}
        self._by_card: dict[str, list[Path]] = {}
        for folder in _folders(root):
            self._by_name.setdefault(folder.name, []).append(folder)
            card = self._cards.of(folder.name)
            if card is not None:
                self._by_card.setdefault(card, []).append(folder)

    def card_of(self, name: str) -> str | None:
        """Return the card of a benchmark's or folder's name, None when it has none."""
        return self._cards.of(name)

    def of_card(self, card: str) -> list[Path]:
        """Return the folders that a card claims."""
        return self._by_card.get(card, [])

    def other_cards(self, suite_names: list[str]) -> list[str]:
        """Return the names of the cards outside the suite that claim a folder, sorted."""
        return sorted(set(self._by_card) - set(suite_names))

    def asked_for(self, name: str) -> list[Path]:
        """Return the folders of a benchmark or folder name; [] for a benchmark without a folder.

        A folder of this very name wins over the others that the card claims.
        """
        if name in self._by_name:
            return self._by_name[name]
        card = self.card_of(name)
        if card is None:
            known = {*plugins.names("benchmarks"), *self._by_name}
            raise DataError(
                f"'{name}' is neither a benchmark nor a folder in {self.root}:"
                f" {did_you_mean(name, known)}"
            )
        return self.of_card(card)


def _folders(root: Path) -> list[Path]:
    """Return the folders that may be datasets: those in ``root`` and ``root/classification``."""
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such folder. Fix: give the folder that holds one folder per"
            " dataset"
        )
    parents = [root]
    if (root / PARENT).is_dir():
        parents.append(root / PARENT)
    folders: list[Path] = []
    for parent in parents:
        folders += [path for path in sorted(parent.iterdir()) if path.is_dir()]
    return folders


def _is_folder_name(name: str, folders: list[Path], card: str | None) -> bool:
    """Tell whether ``name`` is the name of a folder, and another one than its card has."""
    if card is None or fold(name) == fold(card):
        return False
    return all(folder.name == name for folder in folders)


def _only(name: str, folders: list[Path]) -> Path:
    if len(folders) > 1:
        listed = ", ".join(str(path) for path in folders)
        raise DataError(
            f"{name} is here {len(folders)} times ({listed}). Fix: name the one meant, or move the"
            " others"
        )
    return folders[0]


def _open(folder: Path, root: Path, layout: str | None, own_name: bool = False) -> Dataset:
    """Return the dataset of a folder with its test split, if it has one, and its note.

    With ``own_name`` the dataset is called as its folder, whatever its card is called.
    """
    benchmark = for_folder(folder)
    card = benchmark.name if benchmark.name in plugins.names("benchmarks") else None
    if own_name:
        benchmark = dataclasses.replace(benchmark, name=file_key(folder.name))
    inside_root = folder.resolve().is_relative_to(root.resolve())
    dataset = Dataset(
        benchmark,
        folder,
        layout or detect(folder, benchmark),
        root=root if inside_root else None,
        card=card,
    )
    if not _paths(LAYOUTS[dataset.layout], folder, benchmark, "test"):
        return dataclasses.replace(dataset, note="no test split")
    test = read_split(dataset, "test")
    return dataclasses.replace(dataset, note=_note(dataset, test), test=test)


def _words(benchmark: Benchmark | None, split: str) -> tuple[str, ...]:
    """Return the words for a split in the names of files and folders.

    The test split of some benchmarks is the one that others call validation.
    """
    if benchmark is not None and split == "test" and benchmark.split == "val":
        return (*SPLITS["val"], *SPLITS["test"])
    return SPLITS[split]


def _paths(layout: Layout, folder: Path, benchmark: Benchmark | None, split: str) -> list[Path]:
    """Return the files of a split, [] when it is absent.

    Where there are folders inside the dataset's folder that its benchmark names, they hold it.
    """
    words = _words(benchmark, split)
    inner_names = () if benchmark is None else benchmark.inner
    inner = [folder / name for name in inner_names if (folder / name).is_dir()]
    for place in inner or [folder]:
        paths = layout.locate(place, words)
        if paths:
            return paths
    return []


def detect(folder: Path, benchmark: Benchmark | None = None) -> str:
    """Return the first layout that holds a test split, else one that holds another split."""
    for split in ("test", "val", "train"):
        for name, layout in LAYOUTS.items():
            if _paths(layout, folder, benchmark, split):
                return name
    word = _words(benchmark, "test")[0]
    tried = "; ".join(f"{name}: {layout.tries.format(word)}" for name, layout in LAYOUTS.items())
    raise DataError(
        f"{folder}: no dataset in a known layout; looked for {tried}; found {listing(folder)}."
        " Fix: give its files one of these names"
    )


def read_split(dataset: Dataset, split: str) -> Split:
    """Return (rows, labels, remark) of one split; raise DataError when it cannot be read."""
    folder = dataset.folder
    layout = LAYOUTS[dataset.layout]
    benchmark = dataset.benchmark
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
    paths = _paths(layout, folder, benchmark, split)
    if not paths:
        words = _words(benchmark, split)
        tried = " or ".join(layout.tries.format(word) for word in words)
        present = [name for name in SPLITS if _paths(layout, folder, benchmark, name)]
        raise DataError(
            f"{folder}: no {split} split in layout {dataset.layout}; looked for {tried}; splits"
            f" found: {', '.join(present) or 'none'}; files found: {listing(folder)}. Fix: add the"
            " split, or name another layout"
        )
    top = dataset.root or folder
    for path in paths:
        refuse_link_outside(top, path)
    return layout.read(folder, paths, benchmark)


def refuse_link_outside(top: Path, path: Path) -> None:
    """Raise DataError when ``path``, below ``top``, is a link to a place outside it."""
    try:
        inside(top, path.relative_to(top).as_posix())
    except DataError as error:
        raise DataError(
            f"{path}: is a link that leads outside {top}. Fix: put the files themselves there, or"
            " make the folder of the whole dataset a link"
        ) from error


def _note(dataset: Dataset, test: Split) -> str:
    """Return which of the published classes and test images are present; "" when all are."""
    benchmark = dataset.benchmark
    _, labels, remark = test
    parts = []
    if dataset.card is None:
        parts.append(f"no card: {len(benchmark.classes)} classes, {len(labels)} test images")
        if benchmark.source == FOLDER_NAMES:
            parts.append("class names are those of the folders")
    else:
        if benchmark.name != dataset.card:
            parts.append(f"prompts and metric of the card {dataset.card}")
        present = classes_with_images(labels)
        published = len(load(dataset.card).classes)
        if present != published or len(benchmark.classes) != published:
            parts.append(f"{present} of {published} classes")
        if benchmark.test is None:
            parts.append(f"{len(labels)} test images; the card does not state how many there are")
        elif len(labels) != benchmark.test and benchmark.name != dataset.card:
            parts.append(f"{len(labels)} test images, {benchmark.test} are published")
        elif len(labels) != benchmark.test:
            parts.append(f"{len(labels)} of {benchmark.test} test images: split differs")
    if remark:
        parts.append(remark)
    return "; ".join(parts)


def classes_with_images(labels: np.ndarray) -> int:
    """Return how many classes have an image; labels are int64 [n] or 0/1 [n, C]."""
    if labels.ndim == 2:
        return int((labels.sum(axis=0) > 0).sum())
    return len(np.unique(labels))


def listing(folder: Path) -> str:
    """Return the first names in a folder, for a message."""
    names = []
    for path in folder.iterdir():
        names.append(f"{path.name}/" if path.is_dir() else path.name)
    names.sort()
    if not names:
        return "nothing"
    return first_few(names, SHOWN)
