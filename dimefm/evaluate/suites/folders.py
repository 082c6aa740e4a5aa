"""clip-benchmark's folders: which there are, what they are called, and their tars.

``wds_NAME/`` has ``{train,test}/nshards.txt``, ``{train,test}/0.tar``, ..., ``classnames.txt``,
``zeroshot_classification_templates.txt`` and ``dataset_type.txt``. A ``/`` in a name is a ``-`` in
its folder; DataComp's folders end in ``_test``.

Source: clip_benchmark 1.6.2, datasets/builder.py build_wds_dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.data.image_files import is_litter
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.datasets.captions.shards import dataset_type
from dimefm.evaluate.datasets.layouts import listing, refuse_link_outside
from dimefm.evaluate.datasets.text_files import text_lines
from dimefm.evaluate.suites.datacomp import Task
from dimefm.runtime.printable import shown
from dimefm.runtime.text import file_key, first_few

START = "wds_"
END = "_test"
COLLECTIONS = ("vtab", "wilds", "tfds", "fairness", "retrieval", "misc")
"""First parts of names with a ``/``."""

CLASSIFICATION = "classification"
MULTILABEL = "multilabel"
RETRIEVAL = "retrieval"
TYPES = (CLASSIFICATION, MULTILABEL, RETRIEVAL)
"""What ``dataset_type.txt`` may say; without the file a folder is for classification."""

COUNT = "nshards.txt"
MOST_DIGITS = 9
SHOWN = 6


@dataclass(frozen=True)
class SuiteSet:
    """One folder to score: ``name`` is clip-benchmark's, or the key of the DataComp ``task``."""

    name: str
    folder: Path
    task: Task | None = None

    @property
    def key(self) -> str:
        """Return the name as it stands in names of folders."""
        return file_key(self.name.replace("/", "-"))


def find_sets(root: Path, names: Sequence[str] | None = None) -> tuple[list[SuiteSet], list[str]]:
    """Return the sets below ``root``, and the ``names`` that have no folder.

    Without ``names``, every folder ``wds_*`` is a set. ``root`` may be such a folder itself.

    Raises DataError when there is no such folder, or two folders are one set.
    """
    folders = folders_by_name(root)
    if names is None:
        chosen = {name: paths for name, paths in folders.items() if _begins(paths)}
        if not chosen:
            raise DataError(
                f"{root}: no folder is called {START}NAME; found {shown(listing(root), 200)}. Fix:"
                " give the folder that holds clip-benchmark's folders"
            )
        return [_only(name, chosen[name]) for name in sorted(chosen)], []
    sets = []
    missing = []
    for name in dict.fromkeys(names):
        paths = folders.get(plain_name(name), [])
        if paths:
            sets.append(_only(plain_name(name), paths))
        else:
            missing.append(f"{name} ({did_you_mean(name, list(folders))})")
    return sets, missing


def folders_by_name(root: Path) -> dict[str, list[Path]]:
    """Return the folders in ``root``, or ``root`` itself where it is a set, by plain name."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder. Fix: check --root")
    paths = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_litter(path.name)]
    if not _begins(paths) and _begins([root.absolute()]):
        paths = [root.absolute()]
    folders: dict[str, list[Path]] = {}
    for path in paths:
        folders.setdefault(plain_name(path.name), []).append(path)
    return folders


def _begins(paths: Sequence[Path]) -> bool:
    return any(path.name.casefold().startswith(START) for path in paths)


def plain_name(name: str) -> str:
    """Return a name without ``wds/``, ``wds_`` and ``_test``, in lower case, ``/`` being ``-``."""
    plain = name.strip().casefold().replace("/", "-")
    for start in (START, "wds-"):
        plain = plain.removeprefix(start)
    return plain.removesuffix(END)


def _only(name: str, paths: Sequence[Path]) -> SuiteSet:
    return SuiteSet(full_name(name), only_folder(name, paths))


def only_folder(name: str, paths: Sequence[Path]) -> Path:
    """Return the one folder of a set; one that is called ``wds_*`` wins over others.

    Raises DataError when several are left.
    """
    named = [path for path in paths if _begins([path])] or list(paths)
    if len(named) > 1:
        raise DataError(
            f"{name} is here {len(named)} times:"
            f" {first_few([path.name for path in named], SHOWN)}. Fix: move the others"
        )
    return named[0]


def full_name(name: str) -> str:
    """Return clip-benchmark's name of a plain one: ``vtab/cifar10`` for ``vtab-cifar10``."""
    collection, dash, rest = name.partition("-")
    if dash and collection in COLLECTIONS:
        return f"{collection}/{rest}"
    return name


def type_of(folder: Path) -> str:
    """Return what kind of set a folder is; raise DataError for a kind that is unknown."""
    stated = dataset_type(folder) or CLASSIFICATION
    if stated not in TYPES:
        raise DataError(
            f"{folder / 'dataset_type.txt'}: says '{shown(stated)}', expected"
            f" {', '.join(TYPES[:-1])} or {TYPES[-1]}. Fix: correct it"
        )
    return stated


def tars_of(folder: Path, split: str = "test") -> list[Path]:
    """Return the tars of a split, in the order of their numbers.

    Raises DataError when there are none, ``nshards.txt`` counts others, or one is a link to a place
    outside the folder.
    """
    place = folder / split
    present = set()
    if place.is_dir():
        for path in place.glob("*.tar"):
            if path.stem.isdecimal() and len(path.stem) <= MOST_DIGITS:
                present.add(int(path.stem))
    if not present:
        raise DataError(
            f"{place}: no tars, expected {COUNT}, 0.tar, 1.tar, ...; found"
            f" {listing(place) if place.is_dir() else 'no such folder'}. Fix: fetch them"
        )
    count = _stated_count(place, len(present))
    wanted = set(range(count))
    for numbers, word in ((wanted - present, "missing"), (present - wanted, "beyond it")):
        if numbers:
            raise DataError(
                f"{place / COUNT}: says {count:,} tars, found {len(present):,}; {word}:"
                f" {first_few([f'{number}.tar' for number in sorted(numbers)], SHOWN)}. Fix: fetch"
                " the tars again, or correct the number"
            )
    paths = [place / f"{number}.tar" for number in range(count)]
    for path in paths:
        refuse_link_outside(folder, path)
    return paths


def _stated_count(place: Path, present: int) -> int:
    """Return the number of tars that a split has by its ``nshards.txt``."""
    path = place / COUNT
    if not path.is_file():
        raise DataError(
            f"{path}: not found, and it says how many tars there are; found {present:,}. Fix: fetch"
            " it again"
        )
    stated = next(iter(text_lines(path)), "").strip()
    if not stated.isdecimal() or len(stated) > MOST_DIGITS or not int(stated):
        raise DataError(
            f"{path}: holds '{shown(stated)}', expected a number above 0. Fix: correct it"
        )
    return int(stated)
