"""Labels of a dataset's rows: read them, and map them to class numbers.

Evaluation and the captions that training makes from labels use the same rules.
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
from dimefm.evaluate.benchmark import CLASS_FILE, GIVEN_NAMES, Benchmark
from dimefm.evaluate.datasets import class_names
from dimefm.evaluate.datasets.text_files import text_lines
from dimefm.runtime.printable import shown

BY_NUMBER = "labels taken by number in the card's order"


@dataclass(frozen=True)
class RawLabels:
    """The label of each row as the data hold it, and the class names that the data state.

    A value is a class number, a class name, a list of class numbers, or None. ``names``, if any,
    say what the numbers mean.
    """

    values: list
    names: Sequence[str] | None = None


def read_labels(shards: Sequence[Shard]) -> RawLabels:
    """Return the labels of all rows of ``shards``, without reading images where possible.

    A row that cannot be read has the label None. Raises DataError when two shards number their
    class names differently.
    """
    values: list = []
    values_of_file: dict[Path, list] = {}  # files that are split into several parts
    for shard in shards:
        if not isinstance(shard, Part):
            values += _labels_of_shard(shard)
            continue
        if shard.path not in values_of_file:
            values_of_file[shard.path] = _labels_of_shard(shard.whole)
        values += values_of_file[shard.path][shard.rows.start : shard.rows.stop]
    return RawLabels(values, _stated_names(shards))


def class_numbers(
    labels: RawLabels, benchmark: Benchmark, where: str, folder: Path
) -> tuple[np.ndarray, str]:
    """Return class numbers int64 [n], or 0/1 [n, C] for a multi-label benchmark, and a remark.

    Names map by name. Numbers map by the names that the data state for them, else they are lines of
    the class names next to the data in ``folder`` or given for the evaluation, or places in the
    card, which the remark then says. Raises DataError for a label that maps to no class, naming it.
    """
    names_beside_data = (folder / CLASS_FILE).is_file() or benchmark.source == GIVEN_NAMES
    classes = benchmark.classes
    names = labels.names
    if benchmark.wnids and names is None and names_beside_data:
        names = _names_of_numbers(labels.values, folder)
    if names is not None:
        positional = names_beside_data or bool(benchmark.wnids)
        number_of_label = numbers_of(names, benchmark, where, positional=positional)
        return _assemble(labels.values, number_of_label, benchmark, where), ""

    values = labels.values
    if any(isinstance(value, str) for value in values):
        names = sorted({str(value) for value in values})
        numbers = numbers_of(names, benchmark, where)
        number_of_name = dict(zip(names, numbers.tolist(), strict=True))
        values = [number_of_name[str(value)] for value in values]
        are_decimal = all(name.isdecimal() for name in names)
        by_number = are_decimal and not set(names) <= set(classes)
    else:
        by_number = True
    remark = BY_NUMBER if by_number and not names_beside_data else ""
    return _assemble(values, np.arange(len(classes)), benchmark, where), remark


def numbers_of(
    names: Sequence[str], benchmark: Benchmark, where: str, *, positional: bool = False
) -> np.ndarray:
    """Return the class number of each name, see :func:`class_names.numbers`."""
    return class_names.numbers(
        names,
        benchmark.classes,
        benchmark.aliases,
        where,
        positional=positional,
        ids=benchmark.wnids,
    )


def _names_of_numbers(values: Sequence[object], folder: Path) -> list[str] | None:
    """Return the lines of the class names next to the data, None when no label is a number."""
    if any(isinstance(value, str) for value in values):
        return None
    lines = [line.strip() for line in text_lines(folder / CLASS_FILE)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _stated_names(shards: Sequence[Shard]) -> list[str] | None:
    """Return the class names that all shards state for their numbers, or None when none does."""
    names_of_file: dict[Path, list[str] | None] = {}
    for shard in shards:
        if shard.path in names_of_file:
            continue
        whole = shard.whole if isinstance(shard, Part) else shard
        names_of_file[shard.path] = whole.label_names() if isinstance(whole, ParquetShard) else None
    if not names_of_file:
        return None
    first, *others = names_of_file
    for path in others:
        if names_of_file[path] != names_of_file[first]:
            raise DataError(
                f"{path}: its class names differ from those of {first}. Fix: write the files alike"
            )
    return names_of_file[first]


def _labels_of_shard(shard: Shard) -> list:
    """Return the label of each row of a shard; in class folders the name of the row's folder."""
    if isinstance(shard, FolderShard):
        labels: list[str | None] = []
        for key in shard.keys():
            name, slash, _ = key.partition("/")
            labels.append(name if slash else None)
        return labels
    if hasattr(shard, "labels"):
        return shard.labels()
    return [_label_of_row(shard, row) for row in range(len(shard))]


def _label_of_row(shard: Shard, row: int) -> object:
    """Return the label of one row, None when the row cannot be read."""
    try:
        return shard[row].label
    except BadRow:
        return None


def _assemble(
    values: list, number_of_label: np.ndarray, benchmark: Benchmark, where: str
) -> np.ndarray:
    """Return class numbers int64 [n], or 0/1 [n, C] for a multi-label benchmark.

    ``values`` are labels (or lists of them); ``number_of_label`` int64 [C] maps a label to its
    class number.
    """
    expected: type = list if benchmark.multilabel else int
    wanted = "a list of class numbers" if benchmark.multilabel else "one class number"
    for row, value in enumerate(values):
        if not isinstance(value, expected):
            raise DataError(
                f"{where}, row {row}: {benchmark.name} expects {wanted}, found"
                f" {shown(value)}. Fix: correct the data"
            )
    n_labels = len(number_of_label)
    if not benchmark.multilabel:
        return number_of_label[class_names.within(values, n_labels, where)]
    return marks(values, number_of_label, len(benchmark.classes), where)


def marks(
    label_lists: Sequence[Sequence[int]], number_of_label: np.ndarray, n_classes: int, where: str
) -> np.ndarray:
    """Return int64 [n, C] with 1 where a row has the class, of n lists of labels.

    ``number_of_label`` int64 maps a label to its class number. Raises DataError for a label outside
    it.
    """
    rows = np.zeros((len(label_lists), n_classes), dtype=np.int64)
    for row, row_labels in enumerate(label_lists):
        checked = class_names.within(row_labels, len(number_of_label), where)
        rows[row, number_of_label[checked]] = 1
    return rows
