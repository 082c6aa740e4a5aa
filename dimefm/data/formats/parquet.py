"""Parquet: ``key, image, label`` or ``key, text``.

Images are encoded bytes, base64, names of files, or Hugging Face's ``{bytes, path}``.

Only the columns that are wanted are read. Rows are served from whole row groups; the groups used
last stay in memory, up to :data:`~dimefm.data.rows.BYTES_KEPT` of all files of a process together.
Groups of more than a gigabyte are read in parts (:mod:`dimefm.data.row_groups`). Where files hold
more, random rows would read a group again for almost every row, so training takes a few groups at a
time (``shuffle`` in recipes).
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.data.cells import image_of
from dimefm.data.columns import Chosen, choose, sentences
from dimefm.data.lines import LONGEST_TEXT
from dimefm.data.row_groups import RowGroups
from dimefm.data.rows import BYTES_KEPT, MOST_DIGITS, Columns, Row, Shard, bad_row
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow, DataError
from dimefm.storage.reading import is_row_fault, patiently
from dimefm.storage.small_files import parse_json

SUFFIXES = (".parquet",)
KEEPS_OPEN = True  # a file stays open while its shard is used
KINDS = frozenset({"image", "text"})

GROUPS_KEPT = 4  # whatever their size: two windows of two
LONGEST_KEY = 4096  # characters; a longer key is cut

T = TypeVar("T")


def claims(path: Path) -> bool:
    """Every ``.parquet`` file is Parquet."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one Parquet file.

    Raises DataError when it is damaged or lacks the columns that ``kind`` needs.
    """

    def open_file() -> tuple[pq.ParquetFile, list[str]]:
        file = pq.ParquetFile(path)
        return file, file.schema_arrow.names

    file, names = _reading(open_file, path, "not a readable Parquet file")
    chosen = choose(path, names, kind, columns)

    def open_shard() -> ParquetShard:
        return ParquetShard(path, name, file, chosen, columns.root)

    return [_reading(open_shard, path, "not a readable Parquet file")]


def _reading(read: Callable[[], T], path: Path, trouble: str, where: str = "") -> T:
    """Return ``read()``; raise DataError, with the ``trouble``, when the file is damaged."""
    try:
        return patiently(read, path)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises what its decoders raise
        if not is_row_fault(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{path}{where}: {trouble} ({reason}). Fix: fetch or write it again"
        ) from error


class ParquetShard(Divisible):
    """One Parquet file."""

    def __init__(
        self,
        path: Path,
        name: str,
        file: pq.ParquetFile,
        chosen: Chosen,
        root: Path | None,
    ):
        super().__init__(path, name)
        self._chosen = chosen
        self._root = root or path.parent
        columns = (chosen.key, chosen.image, chosen.text, chosen.label)
        self._wanted = [column for column in columns if column]
        self._groups = RowGroups(path, file, self._wanted)
        self._starts = self._groups.starts
        self._kept: dict[int, pa.Table] = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_lock": None, "_kept": {}}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def cuts(self, most: int) -> list[int]:
        """Return where parts begin.

        A part is whole row groups: as many as have at most ``most`` rows, and one at least.
        """
        cuts = [0]
        for start, end in itertools.pairwise(self._starts.tolist()):
            is_full = end - cuts[-1] > most
            if is_full and start > cuts[-1]:
                cuts.append(start)
        return cuts

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        return self._blocks

    @functools.cached_property
    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """The first rows of the row groups, and the bytes of their wanted columns, uncompressed."""
        return _reading(self._groups.blocks, self.path, "damaged")

    def _group_of(self, row: int) -> int:
        """Return the number of the row group that holds a row."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def keys_of(self, rows: range) -> list[str]:
        if self._chosen.key is None or not rows:
            return [str(index) for index in rows]
        first = self._group_of(rows[0])
        last = self._group_of(rows[-1])
        keys: list[str] = []
        start = int(self._starts[first])
        for column in self._columns(range(first, last + 1), self._chosen.key):
            keys += _keys(column, start)
            start += len(column)
        offset = rows.start - int(self._starts[first])
        return keys[offset : offset + len(rows)]

    def _columns(self, groups: range, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield the column of a name in some row groups."""
        for number in groups:
            table = self._read(number, [name])
            if table is not None:
                yield table.column(0)
                continue
            for part in self._parts(number, name):
                yield part.column(0)

    def _parts(self, number: int, name: str) -> Iterator[pa.Table]:
        """Yield the column of a name in the parts of a large row group."""
        parts = self._groups.parts(number, [name])

        def following() -> pa.Table | None:
            return next(parts, None)

        while True:
            part = _reading(following, self.path, "damaged", _in(number))
            if part is None:
                return
            yield part

    def _read(self, number: int, columns: list[str]) -> pa.Table | None:
        """Return columns of a row group, None when it is large."""

        def read() -> pa.Table | None:
            return self._groups.whole(number, columns)

        return _reading(read, self.path, "damaged", _in(number))

    @property
    def label_column(self) -> str | None:
        """Name of the column that holds labels, None when there is none."""
        return self._chosen.label

    @property
    def column_names(self) -> list[str]:
        """Names of all columns of the file."""
        return self._groups.file.schema_arrow.names

    def labels(self) -> list:
        """Return the label of every row; None where the file has no label column."""
        if self._chosen.label is None:
            return [None] * len(self)
        labels: list = []
        for column in self._columns(range(len(self._starts) - 1), self._chosen.label):
            labels += _labels(column)
        return labels

    def label_names(self) -> list[str] | None:
        """Return the ClassLabel names that Hugging Face keeps in the Arrow metadata, or None."""
        metadata = self._groups.file.schema_arrow.metadata or {}
        raw = metadata.get(b"huggingface")
        if not raw:
            return None
        try:
            features = parse_json(raw.decode())["info"]["features"]
            feature = features[self._chosen.label]
        except (ValueError, KeyError, TypeError):
            return None
        if isinstance(feature, list) and feature:
            feature = feature[0]
        if not isinstance(feature, dict):
            return None
        inner = feature.get("feature")
        if isinstance(inner, dict):
            feature = inner
        return feature.get("names")

    def _table(self, index: int) -> tuple[pa.Table, int]:
        """Return a table that holds a row, and the row's place in it."""
        number = self._group_of(index)
        place = index - int(self._starts[number])
        group = self._group(number)
        if group is not None:
            return group, place

        def read() -> tuple[pa.Table, int]:
            return self._groups.part(number, place)

        return _reading(read, self.path, "damaged", _in(number))

    def _group(self, number: int) -> pa.Table | None:
        """Return the wanted columns of a row group, which stays in memory; None for a large one."""
        with self._lock:
            group = self._kept.get(number)
            if group is None:
                group = self._read(number, self._wanted)
                if group is None:
                    return None
                self._kept[number] = group
            _memory.use(self, number, group.nbytes)
            return group

    def forget(self, number: int) -> None:
        """Drop a row group from memory; it is read again when it is needed."""
        self._kept.pop(number, None)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        table, place = self._table(index)

        def cell(column: str | None) -> Any:
            return None if column is None else _value(table.column(column)[place], column)

        chosen = self._chosen
        key = cell(chosen.key)
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if chosen.image is not None:
            where = f"{self.path}, row {index}"
            image = image_of(cell(chosen.image), self._root, where)
        if chosen.text is not None:
            _refuse_long(table.column(chosen.text)[place])
            texts = sentences(cell(chosen.text))
        label = _label(cell(chosen.label))
        return Row(_key(key, index), image=image, texts=texts, label=label)


def _value(scalar: pa.Scalar, column: str) -> Any:
    """Return a cell as a Python value; raise BadRow when Python has none for it."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        raise BadRow(f"its {column} is not UTF-8: {error.reason} at byte {error.start}") from error


def _refuse_long(scalar: pa.Scalar) -> None:
    """Raise BadRow for a text of more bytes than a line of text may have, before it is copied."""
    buffer = scalar.as_buffer() if isinstance(scalar, pa.BinaryScalar) else None
    if buffer is not None and buffer.size > LONGEST_TEXT:
        raise BadRow(f"its text has {buffer.size:,} bytes; at most {LONGEST_TEXT:,} are read")


def _label(value: Any) -> Any:
    """Return a label; raise BadRow for a number that no class can have."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if is_number and abs(value) >= 10**MOST_DIGITS:
        raise BadRow(f"its label is a number of more than {MOST_DIGITS} digits")
    return value


def _labels(column: pa.ChunkedArray) -> list:
    """Return the labels in a column, None for those that cannot be read."""
    labels: list = []
    for value in _cells(column, lambda scalar: None):
        try:
            labels.append(_label(value))
        except BadRow:
            labels.append(None)
    return labels


def _keys(column: pa.ChunkedArray, start: int) -> list[str]:
    """Return the keys in a column whose first row is ``start``."""
    values = _cells(column, _readable_part)
    return [_key(value, index) for index, value in enumerate(values, start)]


def _readable_part(scalar: pa.Scalar) -> str | None:
    """Return the text of a cell that is not UTF-8, None for any other cell."""
    buffer = scalar.as_buffer() if isinstance(scalar, pa.BinaryScalar) else None
    if buffer is None:
        return None
    return buffer.to_pybytes().decode("utf-8", "backslashreplace")


def _cells(column: pa.ChunkedArray, substitute: Callable[[pa.Scalar], Any]) -> list:
    """Return the values of a column, with a substitute for each that Python cannot hold."""
    try:
        return column.to_pylist()
    except Exception as error:  # e.g. text that is not UTF-8, a date that Python cannot hold
        _refuse_other_faults(error)
    values: list = []
    for scalar in column:
        try:
            values.append(scalar.as_py())
        except Exception as error:
            _refuse_other_faults(error)
            values.append(substitute(scalar))
    return values


def _refuse_other_faults(error: Exception) -> None:
    """Raise ``error`` unless the value of a cell is at fault."""
    if not isinstance(bad_row(error), BadRow):
        raise error


def _key(value: object, index: int) -> str:
    """Return the key of a row: its cell, or else its number."""
    return str(index) if value is None else str(value)[:LONGEST_KEY]


def _in(number: int) -> str:
    """Return the place of a row group in a message."""
    return f", row group {number}"


GroupId = tuple["weakref.ref[ParquetShard]", int]  # a file and the number of a row group in it


class _Memory:
    """Which row groups of all files are in memory.

    When they are too many, those that were used longest ago are dropped.
    """

    def __init__(self):
        self._sizes: OrderedDict[GroupId, int] = OrderedDict()  # bytes, the last used last
        self._total = 0
        self._lock = threading.Lock()

    def use(self, shard: ParquetShard, number: int, size: int) -> None:
        """Note that row group ``number`` of ``shard``, which takes ``size`` bytes, is used."""
        group = (weakref.ref(shard), number)
        with self._lock:
            self._total += size - self._sizes.pop(group, 0)
            self._sizes[group] = size
            while len(self._sizes) > GROUPS_KEPT and self._total > BYTES_KEPT:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop the row group that was used longest ago."""
        (reference, number), size = self._sizes.popitem(last=False)
        self._total -= size
        shard = reference()
        if shard is not None:
            shard.forget(number)


_memory = _Memory()
