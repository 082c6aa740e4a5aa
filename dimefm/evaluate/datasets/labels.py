"""From the label values that rows carry to class numbers: one way for evaluation and for the
captions of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data import Shard
from dimefm.data.formats.folder import FolderShard
from dimefm.data.formats.parquet import ParquetShard
from dimefm.data.subshards import Part
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.benchmark import CLASS_FILE, Benchmark
from dimefm.evaluate.datasets import class_names

BY_NUMBER = "labels taken by number in the card's order"


@dataclass(frozen=True)
class Values:
    """The label of each row: a class number, a name, a list of numbers, or None; ``names`` say what
    the numbers mean.
    """

    of_row: list
    names: Sequence[str] | None = None


def values(shards: Sequence[Shard]) -> Values:
    """Return the labels of all rows of ``shards``, read without their images where the format
    allows it.

    A row that cannot be read has the label None. Raises DataError when two shards number their
    class names differently.
    """
    whole: dict[Path, list] = {}
    of_row: list = []
    for shard in shards:
        if isinstance(shard, Part):
            if shard.path not in whole:
                whole[shard.path] = _of_shard(shard.whole)
            of_row += whole[shard.path][shard.rows.start : shard.rows.stop]
        else:
            of_row += _of_shard(shard)
    return Values(of_row, _names(shards))


def _names(shards: Sequence[Shard]) -> list[str] | None:
    """Return the class names that all of these shards state for their numbers, or None when none
    does.
    """
    files = {shard.path: shard.whole if isinstance(shard, Part) else shard for shard in shards}
    names = {
        path: file.label_names() if isinstance(file, ParquetShard) else None
        for path, file in files.items()
    }
    first = next(iter(names), None)
    for path, found in names.items():
        if found != names[first]:
            raise DataError(
                f"{path}: its class names differ from those of {first}; write the files alike"
            )
    return names.get(first)


def _of_shard(shard: Shard) -> list:
    if isinstance(shard, FolderShard):
        return [key.partition("/")[0] if "/" in key else None for key in shard.keys()]
    return (
        shard.labels()
        if hasattr(shard, "labels")
        else [_of_row(shard, row) for row in range(len(shard))]
    )


def _of_row(shard: Shard, row: int) -> object:
    try:
        return shard[row].label
    except BadRow:
        return None


def numbered(
    found: Values, benchmark: Benchmark, where: str, folder: Path
) -> tuple[np.ndarray, str]:
    """Return (labels, remark): class numbers int64 [n], or 0/1 [n, C] for a multi-label benchmark.

    Names map by name; numbers by the names that the data state for them, else they are lines of the
    class names beside the data in ``folder``, or places in the card, which the remark then says.
    Raises DataError for a label that maps to no class, naming it.
    """
    own_names = (folder / CLASS_FILE).is_file()
    if found.names is not None:
        meaning = class_names.numbers(
            found.names, benchmark.classes, benchmark.aliases, where, positional=own_names
        )
        return _assemble(found.of_row, meaning, benchmark, where), ""
    values, by_number = found.of_row, all(not isinstance(value, str) for value in found.of_row)
    if not by_number:
        names = sorted({str(value) for value in values})
        numbers = class_names.numbers(names, benchmark.classes, benchmark.aliases, where)
        number = dict(zip(names, numbers.tolist(), strict=True))
        values = [number[str(value)] for value in values]
        by_number = all(map(str.isdecimal, names)) and not set(names) <= set(benchmark.classes)
    remark = BY_NUMBER if by_number and not own_names else ""
    return _assemble(values, np.arange(len(benchmark.classes)), benchmark, where), remark


def _assemble(values: list, meaning: np.ndarray, benchmark: Benchmark, where: str) -> np.ndarray:
    """Return labels int64 [n] or 0/1 [n, C]; ``values`` are numbers (or lists of them) that index
    ``meaning``.
    """
    expected = list if benchmark.multilabel else int
    for row, value in enumerate(values):
        if not isinstance(value, expected):
            wanted = "a list of class numbers" if benchmark.multilabel else "one class number"
            raise DataError(
                f"{where}, row {row}: {benchmark.name} expects {wanted}, found {value!r}; correct"
                " the data"
            )
    if not benchmark.multilabel:
        return meaning[class_names.within(values, len(meaning), where)]
    labels = np.zeros((len(values), len(benchmark.classes)), dtype=np.int64)
    for row, found in enumerate(values):
        labels[row, meaning[class_names.within(found, len(meaning), where)]] = 1
    return labels
