"""The caption of a pair: one of the row's texts, or a class prompt made from its label.

Labels are read as evaluation reads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dimefm.data import Row, Rows, Shard
from dimefm.errors import BadRow
from dimefm.evaluate.benchmark import CLASS_FILE, card_for, for_folder, prompts
from dimefm.evaluate.datasets import labels
from dimefm.evaluate.datasets.class_folders import SPLIT_FOLDERS
from dimefm.runtime.seeding import seed_of

INNER_FOLDERS = (*SPLIT_FOLDERS, "data")
"""Names of folders inside the folder of a dataset."""

Shards = dict[int, Shard]  # by number


class Captions:
    """Chooses the caption of a pair: one of the row's texts, or a class prompt of its label."""

    def __init__(self, rows: Rows, source: str):
        """``source`` is ``"text"``, or ``"label"`` to make prompts for rows without texts.

        Labels become class numbers when this is built. Raises DataError when a shard has only
        labels and no class names belong to its folder, or when a label is none of them.
        """
        self._rows = rows
        self._prompts: dict[int, Prompts] = {}  # by shard
        if source == "label":
            for folder, shards in _datasets_without_texts(rows):
                self._prompts |= _prompts_from_labels(folder, shards)

    def __call__(self, number: int, row: Row, seed: int) -> str | None:
        """Return the caption that ``seed`` selects for raw row ``number``, None if it has none."""
        shard, local = self._rows.locate(number)
        captions = row.texts
        if not captions and shard in self._prompts:
            captions = self._prompts[shard].of_row(local)
        if not captions:
            return None
        choice = seed_of(seed, "caption") % len(captions)
        return captions[choice]


class Prompts:
    """Prompts of the rows of one shard.

    ``classes`` are class numbers int64 [n] (-1: without a label), or 0/1 [n, C] for several labels
    a row. ``prompts_of_class`` [C] are the prompts of each class.
    """

    def __init__(self, classes: np.ndarray, prompts_of_class: list[list[str]]):
        self._classes = classes
        self._prompts_of_class = prompts_of_class

    def of_row(self, row: int) -> tuple[str, ...]:
        """Return the prompts of every class that the row belongs to."""
        chosen: list[str] = []
        for number in self._numbers(row):
            chosen += self._prompts_of_class[number]
        return tuple(chosen)

    def _numbers(self, row: int) -> list[int]:
        """Return the numbers of the classes that the row belongs to."""
        value = self._classes[row]
        if self._classes.ndim == 2:
            return np.flatnonzero(value > 0).tolist()
        return [int(value)] if value >= 0 else []


def _datasets_without_texts(rows: Rows) -> list[tuple[Path, Shards]]:
    """Return (dataset folder, shards by number) of the shards whose rows have no texts.

    The shards of one entry are those of one folder and one file ending.
    """
    datasets: dict[tuple[Path, str], Shards] = {}
    for number, shard in enumerate(rows.shards):
        if not len(shard) or _has_texts(shard):
            continue
        dataset = (_dataset_folder(shard.path), shard.path.suffix)
        datasets.setdefault(dataset, {})[number] = shard
    return [(folder, shards) for (folder, _), shards in datasets.items()]


def _has_texts(shard: Shard) -> bool:
    """Return whether the first readable row has texts."""
    for index in range(len(shard)):
        try:
            return bool(shard[index].texts)
        except BadRow:
            continue
    return False


def _dataset_folder(path: Path) -> Path:
    """Return the folder whose class names belong to ``path``.

    It is the folder of ``path``, or the nearest one above ``train``, ``data`` and the like.
    """
    start = path if path.is_dir() else path.parent
    folder = start
    while not (folder / CLASS_FILE).is_file() and card_for(folder.name) is None:
        if folder.name not in INNER_FOLDERS:
            return start
        folder = folder.parent
    return folder


def _prompts_from_labels(folder: Path, shards: Shards) -> dict[int, Prompts]:
    """Return the prompts of each shard of one dataset, by number; {} if no row has a label.

    Its labels are read together, so that they mean the same in all shards.
    """
    raw = labels.read_labels(list(shards.values()))
    unlabelled = [row for row, value in enumerate(raw.values) if value is None]
    if len(unlabelled) == len(raw.values):
        return {}
    benchmark = for_folder(folder)
    first_shard = next(iter(shards.values()))
    where = str(first_shard.path)
    filled = _fill_unlabelled(raw)
    classes, _ = labels.class_numbers(filled, benchmark, where, folder)
    classes[unlabelled] = -1

    prompts_of_class = prompts(benchmark)
    prompts_of_shard = {}
    start = 0
    for number, shard in shards.items():
        end = start + len(shard)
        in_shard = classes[start:end]
        prompts_of_shard[number] = Prompts(in_shard, prompts_of_class)
        start = end
    return prompts_of_shard


def _fill_unlabelled(raw: labels.RawLabels) -> labels.RawLabels:
    """Return labels with any label, the first one, in place of None."""
    first = next(value for value in raw.values if value is not None)
    values = [first if value is None else value for value in raw.values]
    return labels.RawLabels(values, raw.names)
