"""From a folder of datasets to rows and class numbers: which benchmarks are there, in which layout,
and how complete.

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.data import Rows
from dimefm.data.rows import inside
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.benchmark import Benchmark, card_for, for_folder, load, suite
from dimefm.evaluate.datasets import plain_layouts, vision_datasets

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Layout:
    """How one layout finds a split (``locate``) and reads it (``read``), and which names it tries,
    for messages.
    """

    locate: Callable[[Path, Sequence[str]], list[Path]]
    read: Callable[[Path, list[Path], Benchmark], plain_layouts.Split]
    tries: str


LAYOUTS = {
    "vision-datasets": Layout(vision_datasets.locate, vision_datasets.read, vision_datasets.TRIES),
    "parquet": Layout(
        plain_layouts.locate_parquet,
        plain_layouts.read_parquet,
        "{0}.parquet, {0}-*.parquet, data/{0}-*.parquet",
    ),
    "webdataset": Layout(
        plain_layouts.locate_tar, plain_layouts.read_tar, "{0}.tar, {0}-*.tar, {0}/*.tar"
    ),
    "imagefolder": Layout(
        plain_layouts.locate_folders, plain_layouts.read_folders, "{0}/<class>/<image>"
    ),
}


@dataclass(frozen=True)
class Dataset:
    """One dataset on disk: its benchmark (with the class names that hold for this copy), folder,
    layout, and a note.

    ``note`` says where this copy differs from the published one, and is empty when the counts
    agree. No file outside ``root`` is read (``folder`` when it is None, as of one that a link puts
    below the root that was searched).
    """

    benchmark: Benchmark
    folder: Path
    layout: str
    note: str = ""
    root: Path | None = None

    def rows(self, split: str = "test") -> tuple[Rows, np.ndarray, list[str]]:
        """Return (rows, labels, class names) of ``"train"``, ``"val"`` or ``"test"``.

        Labels are int64 [n], or 0/1 [n, C] for a multi-label benchmark, and index the class names.
        Raises DataError when the split is not there, or its labels do not fit the class names.
        """
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
    """Return (datasets found, names that are missing) of a folder of datasets.

    ``names`` are benchmarks or folders; without them the 20 ELEVATER sets are looked for, in the
    order of their names, and then, with ``every_card``, the folders that another card claims. A
    benchmark without a folder is listed as missing. ``layout`` overrides detection for all of them.
    The test split of every set found is opened and its labels are checked. Raises DataError when
    the root is absent or a name is neither a benchmark nor a folder. A dataset that cannot be read,
    or that two folders claim, is given to ``on_failure`` with its error and left out; without
    ``on_failure`` that error is raised.
    """
    root = Path(root)
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"unknown layout '{layout}': {did_you_mean(layout, LAYOUTS)}")
    folders = _folders(root)
    wanted = suite() if names is None else list(names)
    if names is None and every_card:
        cards = {card_for(path.name) for path in folders}
        wanted += sorted(name for name in cards if name is not None and name not in wanted)
    claims = {name: _claims(name, folders, root, exact=names is not None) for name in wanted}
    datasets, missing = [], []
    for name, found in claims.items():
        if not found:
            missing.append(card_for(name) or name)
            continue
        try:
            datasets.append(_dataset(_only(name, found), root, layout))
        except (DataError, OSError) as error:
            if on_failure is None:
                raise
            on_failure(card_for(name) or name, error)
    return datasets, missing


def _folders(root: Path) -> list[Path]:
    """Return every folder that may be a dataset: directly below ``root`` and
    ``root/classification``.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such folder; give the folder that holds one folder per dataset"
        )
    places = [root, root / "classification"] if (root / "classification").is_dir() else [root]
    return [path for place in places for path in sorted(place.iterdir()) if path.is_dir()]


def _claims(name: str, folders: list[Path], root: Path, *, exact: bool) -> list[Path]:
    """Return the folders of a benchmark or folder name; [] when a benchmark has none. ``exact``
    names win.
    """
    card = card_for(name)
    claims = [path for path in folders if exact and path.name == name]
    if not claims and card is None:
        known = {*plugins.names("benchmarks"), *(path.name for path in folders)}
        raise DataError(
            f"'{name}' is neither a benchmark nor a folder in {root}: {did_you_mean(name, known)}"
        )
    return claims or [path for path in folders if card_for(path.name) == card]


def _only(name: str, claims: list[Path]) -> Path:
    if len(claims) > 1:
        name, found = card_for(name) or name, ", ".join(str(path) for path in claims)
        raise DataError(
            f"{name} is here {len(claims)} times ({found}); name the one meant, or move the others"
        )
    return claims[0]


def _dataset(folder: Path, root: Path, layout: str | None) -> Dataset:
    benchmark, top = (
        for_folder(folder),
        (root if folder.resolve().is_relative_to(root.resolve()) else None),
    )
    dataset = Dataset(benchmark, folder, layout or _detect(folder), root=top)
    if not LAYOUTS[dataset.layout].locate(folder, SPLITS["test"]):
        return dataclasses.replace(dataset, note="no test split")
    _, labels, remark = _read(dataset, "test")
    return dataclasses.replace(dataset, note=_note(benchmark, labels, remark))


def _stays(top: Path, path: Path) -> None:
    """Raise DataError when ``path``, below ``top``, is a link to a place outside it."""
    try:
        inside(top, path.relative_to(top).as_posix())
    except DataError as error:
        raise DataError(
            f"{path}: is a link that leads outside {top}; put the files themselves there, or make"
            " the folder of the whole dataset a link"
        ) from error


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


def _read(dataset: Dataset, split: str) -> plain_layouts.Split:
    folder, layout = dataset.folder, LAYOUTS[dataset.layout]
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
    paths = layout.locate(folder, SPLITS[split])
    if not paths:
        tried = " or ".join(layout.tries.format(word) for word in SPLITS[split])
        others = [other for other, words in SPLITS.items() if layout.locate(folder, words)]
        raise DataError(
            f"{folder}: no {split} split in layout {dataset.layout}; looked for {tried}; splits"
            f" found: {', '.join(others) or 'none'}; files found: {_listing(folder)}; add the"
            " split, or name another layout"
        )
    top = dataset.root or folder
    for path in paths:
        _stays(top, path)
    return layout.read(folder, paths, dataset.benchmark)


def _note(benchmark: Benchmark, labels: np.ndarray, remark: str) -> str:
    """Return how many of the published classes and test images are here; "" when all are."""
    here = int((labels.sum(axis=0) > 0).sum()) if labels.ndim == 2 else len(np.unique(labels))
    parts = []
    if benchmark.name not in plugins.names("benchmarks"):
        parts.append(f"no card: {len(benchmark.classes)} classes, {len(labels)} test images")
    else:
        published = len(load(benchmark.name).classes)
        if here != published or len(benchmark.classes) != published:
            parts.append(f"{here} of {published} classes")
        if benchmark.test is None:
            parts.append(f"{len(labels)} test images; the card does not state how many there are")
        elif len(labels) != benchmark.test:
            parts.append(f"{len(labels)} of {benchmark.test} test images: split differs")
    return "; ".join([*parts, remark] if remark else parts)


def _listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return (
        ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    ) or "nothing"
