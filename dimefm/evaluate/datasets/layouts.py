"""Datasets in a folder: which benchmarks are there, in which layout, and how complete.

The root holds one folder per dataset, or a link to it, directly or under ``classification/``.
Layouts, tried in this order:

=================  =================================================================================
vision-datasets    ELEVATER's own: an index (Iris text or COCO json) and zip files
parquet            ``test.parquet``, ``test-*.parquet``, ``data/test-*.parquet``, ``test/*.parquet``
webdataset         ``test.tar``, ``test-*.tar``, ``test/*.tar`` with ``.cls`` or ``.npy`` (0/1)
imagefolder        ``{train,val,test}/<class>/``, or ``<class>/`` directly, which is a test split
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
from dimefm.data.rows import inside
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.benchmark import Benchmark, card_for, for_folder, load, suite
from dimefm.evaluate.datasets import plain_layouts, vision_datasets
from dimefm.evaluate.datasets.plain_layouts import Split
from dimefm.runtime.text import first_few

SPLITS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Name of each split -> the words for it in the names of files and folders."""

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
        locate=plain_layouts.locate_folders,
        read=plain_layouts.read_folders,
        tries="{0}/<class>/<image>",
    ),
}


@dataclass(frozen=True)
class Dataset:
    """One dataset on disk: its benchmark (with the class names of this copy), folder and layout.

    ``note`` says where this copy differs from the published one, and is empty when the counts
    agree. No file outside ``root`` is read; with None, no file outside ``folder`` (as for a folder
    that is a link). ``test`` is the test split as :func:`find` read it; None means not yet read.
    """

    benchmark: Benchmark
    folder: Path
    layout: str
    note: str = ""
    root: Path | None = None
    test: Split | None = field(default=None, repr=False, compare=False)

    def rows(self, split: str = "test") -> tuple[Rows, np.ndarray, list[str]]:
        """Return (rows, labels, class names) of ``"train"``, ``"val"`` or ``"test"``.

        Labels are int64 [n], or 0/1 [n, C] for a multi-label benchmark, and index the class names.
        Raises DataError when the split is not found, or its labels do not fit the class names.
        """
        if split == "test" and self.test is not None:
            rows, labels, _ = self.test
        else:
            rows, labels, _ = _read(self, split)
        return rows, labels, list(self.benchmark.classes)


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
    folders = _folders(root)
    if names is not None:
        wanted = list(names)
    else:
        wanted = suite()
        if every_card:
            wanted += _other_cards(folders, wanted)
    candidates: dict[str, list[Path]] = {}
    for name in wanted:
        candidates[name] = _folders_of(name, folders, root, exact=names is not None)

    datasets: list[Dataset] = []
    missing: list[str] = []
    for name, name_folders in candidates.items():
        if not name_folders:
            missing.append(card_for(name) or name)
            continue
        try:
            folder = _only(name, name_folders)
            datasets.append(_open(folder, root, layout))
        except (DataError, OSError) as error:
            if on_failure is None:
                raise
            on_failure(card_for(name) or name, error)
    return datasets, missing


def _folders(root: Path) -> list[Path]:
    """Return the folders that may be datasets: those in ``root`` and ``root/classification``."""
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such folder. Fix: give the folder that holds one folder per"
            " dataset"
        )
    parents = [root]
    if (root / "classification").is_dir():
        parents.append(root / "classification")
    folders: list[Path] = []
    for parent in parents:
        folders += [path for path in sorted(parent.iterdir()) if path.is_dir()]
    return folders


def _other_cards(folders: list[Path], suite_names: list[str]) -> list[str]:
    """Return the names of the cards outside the suite that claim one of the folders, sorted."""
    names = set()
    for folder in folders:
        card = card_for(folder.name)
        if card is not None and card not in suite_names:
            names.add(card)
    return sorted(names)


def _folders_of(name: str, folders: list[Path], root: Path, *, exact: bool) -> list[Path]:
    """Return the folders of a benchmark or folder name; [] for a benchmark without a folder.

    With ``exact``, a folder of this very name wins over the others that the card claims.
    """
    if exact:
        same_name = [path for path in folders if path.name == name]
        if same_name:
            return same_name
    card = card_for(name)
    if card is None:
        known = {*plugins.names("benchmarks"), *(path.name for path in folders)}
        raise DataError(
            f"'{name}' is neither a benchmark nor a folder in {root}: {did_you_mean(name, known)}"
        )
    return [path for path in folders if card_for(path.name) == card]


def _only(name: str, folders: list[Path]) -> Path:
    if len(folders) > 1:
        listed = ", ".join(str(path) for path in folders)
        raise DataError(
            f"{card_for(name) or name} is here {len(folders)} times ({listed}). Fix: name the one"
            " meant, or move the others"
        )
    return folders[0]


def _open(folder: Path, root: Path, layout: str | None) -> Dataset:
    """Return the dataset of a folder with its test split, if it has one, and its note."""
    benchmark = for_folder(folder)
    inside_root = folder.resolve().is_relative_to(root.resolve())
    dataset = Dataset(
        benchmark,
        folder,
        layout or _detect(folder),
        root=root if inside_root else None,
    )
    if not LAYOUTS[dataset.layout].locate(folder, SPLITS["test"]):
        return dataclasses.replace(dataset, note="no test split")
    test = _read(dataset, "test")
    _, labels, remark = test
    return dataclasses.replace(dataset, note=_note(benchmark, labels, remark), test=test)


def _detect(folder: Path) -> str:
    """Return the first layout that holds a test split, else one that holds another split."""
    for split in ("test", "val", "train"):
        for name, layout in LAYOUTS.items():
            if layout.locate(folder, SPLITS[split]):
                return name
    tried = "; ".join(f"{name}: {layout.tries.format('test')}" for name, layout in LAYOUTS.items())
    raise DataError(
        f"{folder}: no dataset in a known layout; looked for {tried}; found {_listing(folder)}"
    )


def _read(dataset: Dataset, split: str) -> Split:
    """Return (rows, labels, remark) of one split; raise DataError when it cannot be read."""
    folder = dataset.folder
    layout = LAYOUTS[dataset.layout]
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
    paths = layout.locate(folder, SPLITS[split])
    if not paths:
        tried = " or ".join(layout.tries.format(word) for word in SPLITS[split])
        present = [name for name, words in SPLITS.items() if layout.locate(folder, words)]
        raise DataError(
            f"{folder}: no {split} split in layout {dataset.layout}; looked for {tried}; splits"
            f" found: {', '.join(present) or 'none'}; files found: {_listing(folder)}. Fix: add the"
            " split, or name another layout"
        )
    top = dataset.root or folder
    for path in paths:
        _refuse_link_outside(top, path)
    return layout.read(folder, paths, dataset.benchmark)


def _refuse_link_outside(top: Path, path: Path) -> None:
    """Raise DataError when ``path``, below ``top``, is a link to a place outside it."""
    try:
        inside(top, path.relative_to(top).as_posix())
    except DataError as error:
        raise DataError(
            f"{path}: is a link that leads outside {top}. Fix: put the files themselves there, or"
            " make the folder of the whole dataset a link"
        ) from error


def _note(benchmark: Benchmark, labels: np.ndarray, remark: str) -> str:
    """Return which of the published classes and test images are present; "" when all are."""
    parts = []
    if benchmark.name not in plugins.names("benchmarks"):
        parts.append(f"no card: {len(benchmark.classes)} classes, {len(labels)} test images")
    else:
        present = _classes_with_images(labels)
        published = len(load(benchmark.name).classes)
        if present != published or len(benchmark.classes) != published:
            parts.append(f"{present} of {published} classes")
        if benchmark.test is None:
            parts.append(f"{len(labels)} test images; the card does not state how many there are")
        elif len(labels) != benchmark.test:
            parts.append(f"{len(labels)} of {benchmark.test} test images: split differs")
    if remark:
        parts.append(remark)
    return "; ".join(parts)


def _classes_with_images(labels: np.ndarray) -> int:
    """Return how many classes have an image; labels are int64 [n] or 0/1 [n, C]."""
    if labels.ndim == 2:
        return int((labels.sum(axis=0) > 0).sum())
    return len(np.unique(labels))


def _listing(folder: Path) -> str:
    """Return the first names in a folder, for a message."""
    names = []
    for path in folder.iterdir():
        names.append(f"{path.name}/" if path.is_dir() else path.name)
    names.sort()
    if not names:
        return "nothing"
    return first_few(names, SHOWN)
