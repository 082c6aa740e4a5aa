"""Parquet: ``key, image, label`` or ``key, text``.

Images are encoded bytes, names of files, or Hugging Face's ``{bytes, path}``.

Only the columns that are wanted are read. Rows are served from whole row groups; the groups used
last stay in memory, up to :data:`~dimefm.data.rows.BYTES_KEPT` of all files of a process together.
Where files hold more, random rows would read a group again for almost every row, so training takes
a few groups at a time (``shuffle`` in recipes).
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.data.columns import Chosen, choose, read_file, sentences
from dimefm.data.rows import BYTES_KEPT, Columns, Row, Shard
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow, DataError
from dimefm.storage.reading import patiently
from dimefm.storage.small_files import parse_json

SUFFIXES = (".parquet",)
KINDS = frozenset({"image", "text"})

GROUPS_KEPT = 4  # whatever their size: two windows of two


def claims(path: Path) -> bool:
    """Every ``.parquet`` file is Parquet."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one Parquet file.

    Raises DataError when it is damaged or lacks the columns that ``kind`` needs.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({_first_line(error)}). Fix: fetch or write it"
            " again"
        ) from error
    chosen = choose(path, file.schema_arrow.names, kind, columns)
    return [ParquetShard(path, name, file, chosen, columns.root)]


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).splitlines()[0]


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
        self._file = file
        self._chosen = chosen
        self._root = root or path.parent
        metadata = file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        columns = (chosen.key, chosen.image, chosen.text, chosen.label)
        self._wanted = [column for column in columns if column]
        self._kept: dict[int, pa.Table] = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_file": None, "_lock": None, "_kept": {}}

    def __setstate__(self, state):
        file = pq.ParquetFile(state["path"])
        self.__dict__.update(state, _file=file, _lock=threading.Lock())

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
        columns = self._wanted_columns()
        sizes: list[int] = []
        for number in range(len(self._starts) - 1):
            group = self._file.metadata.row_group(number)
            sizes.append(sum(group.column(i).total_uncompressed_size for i in columns))
        has_rows = np.diff(self._starts) > 0
        firsts = self._starts[:-1]
        return firsts[has_rows], np.array(sizes, dtype=np.int64)[has_rows]

    def _wanted_columns(self) -> list[int]:
        """Return the numbers of the file's columns that hold wanted values."""
        metadata = self._file.metadata
        prefixes = tuple(f"{name}." for name in self._wanted)
        columns: list[int] = []
        for number in range(metadata.num_columns):
            path = metadata.schema.column(number).path
            if f"{path}.".startswith(prefixes):
                columns.append(number)
        return columns

    def _group_of(self, row: int) -> int:
        """Return the number of the row group that holds a row."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def keys_of(self, rows: range) -> list[str]:
        if self._chosen.key is None or not rows:
            return [str(index) for index in rows]
        first = self._group_of(rows[0])
        last = self._group_of(rows[-1])
        with self._lock:
            table = self._read(range(first, last + 1), [self._chosen.key])
        offset = rows.start - int(self._starts[first])
        values = table.column(0).slice(offset, len(rows)).to_pylist()
        return [_key(value, index) for value, index in zip(values, rows, strict=True)]

    def _read(self, groups: range, columns: list[str]) -> pa.Table:
        """Return columns of some row groups; raise DataError naming the groups when damaged."""
        try:
            return patiently(lambda: self._file.read_row_groups(groups, columns=columns), self.path)
        except (pa.ArrowInvalid, OSError) as error:
            where = f"row group {groups[0]}"
            if len(groups) > 1:
                where = f"row groups {groups[0]} to {groups[-1]}"
            raise DataError(
                f"{self.path}, {where}: damaged ({_first_line(error)}). Fix: fetch it again"
            ) from error

    def labels(self) -> list:
        """Return the label of every row; None where the file has no label column."""
        if self._chosen.label is None:
            return [None] * len(self)
        groups = range(len(self._starts) - 1)
        with self._lock:
            table = self._read(groups, [self._chosen.label])
            return table.column(0).to_pylist()

    def label_names(self) -> list[str] | None:
        """Return the ClassLabel names that Hugging Face keeps in the Arrow metadata, or None."""
        metadata = self._file.schema_arrow.metadata or {}
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

    def _group(self, number: int) -> pa.Table:
        """Return the wanted columns of a row group, which stays in memory."""
        with self._lock:
            group = self._kept.get(number)
            if group is None:
                group = self._read(range(number, number + 1), self._wanted)
                self._kept[number] = group
            _memory.use(self, number, group.nbytes)
            return group

    def forget(self, number: int) -> None:
        """Drop a row group from memory; it is read again when it is needed."""
        self._kept.pop(number, None)

    def __getitem__(self, index: int) -> Row:
        group = self._group_of(index)
        table = self._group(group)
        place = index - int(self._starts[group])

        def cell(column: str | None) -> Any:
            if column is None:
                return None
            return table.column(column)[place].as_py()

        chosen = self._chosen
        key = _key(cell(chosen.key), index)
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if chosen.image is not None:
            image = self._image(cell(chosen.image), index)
        if chosen.text is not None:
            texts = sentences(cell(chosen.text))
        return Row(key, image=image, texts=texts, label=cell(chosen.label))

    def _image(self, value: object, index: int) -> bytes:
        """Return the encoded image of a cell; raise BadRow when it has none."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return read_file(self._root, value, f"{self.path}, row {index}")
        raise BadRow("has no image bytes")


def _key(value: object, index: int) -> str:
    """Return the key of a row: its cell, or else its number."""
    if value is None:
        return str(index)
    return str(value)


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
