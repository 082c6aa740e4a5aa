"""The sentence of a pair: one of the row's own, or a class prompt made from its label as evaluation
reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dimefm.data import Row, Rows, Shard
from dimefm.errors import BadRow
from dimefm.evaluate.benchmark import CLASS_FILE, card_for, for_folder, prompts
from dimefm.evaluate.datasets import labels
from dimefm.evaluate.datasets.plain_layouts import SPLIT_FOLDERS
from dimefm.runtime.seeding import seed_of

INNER = (*SPLIT_FOLDERS, "data")  # folders inside a dataset's own


class Captions:
    """Chooses the sentence of a pair: one of the row's own, or a class prompt made from its
    label.
    """

    def __init__(self, rows: Rows, source: str):
        """``source`` is ``"text"``, or ``"label"`` to make prompts for rows without sentences of
        their own.

        Labels become class numbers here, once. Raises DataError when a shard has labels only and no
        class names belong to its folder, or when a label is none of them.
        """
        self._rows = rows
        self._made: dict[int, Prompts] = {}  # by shard
        if source == "label":
            for (folder, _), shards in _without_sentences(rows).items():
                self._made |= _made_from_labels(
                    folder, {number: rows.shards[number] for number in shards}
                )

    def __call__(self, number: int, row: Row, seed: int) -> str | None:
        """Return the sentence that ``seed`` selects for raw row ``number``, or None when it has
        none.
        """
        shard, local = self._rows.locate(number)
        found = row.texts
        if not found and shard in self._made:
            found = self._made[shard].of(local)
        return found[seed_of(seed, "caption") % len(found)] if found else None


class Prompts:
    """Prompts of the rows of one shard: ``numbers`` are classes int64 [n] (-1: unlabelled) or 0/1
    [n, C].
    """

    def __init__(self, numbers: np.ndarray, of_class: list[list[str]]):
        self._numbers, self._of_class = numbers, of_class

    def of(self, row: int) -> tuple[str, ...]:
        """Return the prompts of every class that the row belongs to."""
        mark = self._numbers[row]
        classes = (
            np.flatnonzero(mark > 0) if self._numbers.ndim == 2 else [mark] if mark >= 0 else []
        )
        return tuple(prompt for number in classes for prompt in self._of_class[number])


def _without_sentences(rows: Rows) -> dict[tuple[Path, str], list[int]]:
    """Return the numbers of the shards whose rows have no sentences, by (dataset folder, file
    ending).
    """
    found: dict[tuple[Path, str], list[int]] = {}
    for number, shard in enumerate(rows.shards):
        if len(shard) and not _has_sentences(shard):
            found.setdefault((_dataset_folder(shard.path), shard.path.suffix), []).append(number)
    return found


def _has_sentences(shard: Shard) -> bool:
    """Say whether the first readable row has a sentence of its own."""
    for index in range(len(shard)):
        try:
            return bool(shard[index].texts)
        except BadRow:
            continue
    return False


def _dataset_folder(path: Path) -> Path:
    """Return the folder whose class names hold for ``path``: its own, or the one above ``train``,
    ``data`` and the like.
    """
    folder = path if path.is_dir() else path.parent
    here = folder
    while not (here / CLASS_FILE).is_file() and card_for(here.name) is None:
        if here.name not in INNER:
            return folder
        here = here.parent
    return here


def _made_from_labels(folder: Path, shards: dict[int, Shard]) -> dict[int, Prompts]:
    """Return the prompts of each shard of one dataset; its labels are read together, so that they
    mean the same in all.
    """
    raw = labels.read_labels(list(shards.values()))
    unlabelled = [row for row, value in enumerate(raw.values) if value is None]
    if len(unlabelled) == len(raw.values):
        return {}
    benchmark, where = for_folder(folder), str(next(iter(shards.values())).path)
    some = next(value for value in raw.values if value is not None)
    filled = labels.RawLabels([some if value is None else value for value in raw.values], raw.names)
    numbers, _ = labels.class_numbers(filled, benchmark, where, folder)
    numbers[unlabelled] = -1
    of_class = prompts(benchmark)
    ends = np.cumsum([len(shard) for shard in shards.values()])
    return {
        number: Prompts(numbers[end - len(shard) : end], of_class)
        for (number, shard), end in zip(shards.items(), ends.tolist(), strict=True)
    }
