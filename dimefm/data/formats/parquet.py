"""Parquet: ``key, image, label`` or ``key, text``; images as encoded bytes or as Hugging Face's
``{bytes, path}``.

Only the columns that are wanted are read. Rows are served from whole row groups; those used last
stay in memory, up to :data:`~dimefm.data.rows.BYTES_KEPT` of all files of a process together. Where
files hold more, random rows would read a group again for almost each of them, so training takes a
few groups at a time (``shuffle`` in recipes).
"""

from __future__ import annotations

import functools
import itertools
import json
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

SUFFIXES = (".parquet",)
KINDS = frozenset({"image", "text"})

GROUPS_KEPT = 4  # whatever their size: two windows of two


def claims(path: Path) -> bool:
    """Every ``.parquet`` file is Parquet."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one Parquet file; raise DataError when it is damaged or lacks the columns that ``kind``
    needs.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); fetch or write it"
            " again"
        ) from error
    return [
        ParquetShard(
            path, name, file, choose(path, file.schema_arrow.names, kind, columns), columns.root
        )
    ]


class ParquetShard(Divisible):
    """One Parquet file."""

    def __init__(
        self, path: Path, name: str, file: pq.ParquetFile, chosen: Chosen, root: Path | None
    ):
        super().__init__(path, name)
        self._file = file
        self._chosen = chosen
        self._root = root or path.parent
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *groups])
        self._wanted = [
            name for name in (chosen.key, chosen.image, chosen.text, chosen.label) if name
        ]
        self._kept: dict[int, pa.Table] = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_file": None, "_lock": None, "_kept": {}}

    def __setstate__(self, state):
        self.__dict__.update(state, _file=pq.ParquetFile(state["path"]), _lock=threading.Lock())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def cuts(self, most: int) -> list[int]:
        """Return where parts begin: whole row groups, as many as make at most ``most`` rows, and
        one at least.
        """
        found = [0]
        for start, end in itertools.pairwise(int(start) for start in self._starts):
            if end - found[-1] > most and start > found[-1]:
                found.append(start)
        return found

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        return self._blocks

    @functools.cached_property
    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """First rows of the row groups, and the bytes of their wanted columns as the file has them,
        not compressed.
        """
        metadata, used = self._file.metadata, np.diff(self._starts) > 0
        paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        columns = [
            i
            for i, path in enumerate(paths)
            if f"{path}.".startswith(tuple(f"{name}." for name in self._wanted))
        ]
        groups = (metadata.row_group(number) for number in range(len(used)))
        sizes = [sum(group.column(i).total_uncompressed_size for i in columns) for group in groups]
        return self._starts[:-1][used], np.array(sizes, dtype=np.int64)[used]

    def keys_of(self, rows: range) -> list[str]:
        if self._chosen.key is None or not rows:
            return [str(index) for index in rows]
        first, last = (
            int(np.searchsorted(self._starts, row, side="right")) - 1 for row in (rows[0], rows[-1])
        )
        with self._lock:
            column = self._read(range(first, last + 1), [self._chosen.key]).column(0)
        found = column.slice(rows.start - int(self._starts[first]), len(rows)).to_pylist()
        return [_key(value, index) for value, index in zip(found, rows, strict=True)]

    def _read(self, groups: range, columns: list[str]) -> pa.Table:
        try:
            return self._file.read_row_groups(groups, columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            reason, last = str(error).splitlines()[0], groups[-1]
            where = f"row group {last}" if len(groups) == 1 else f"row groups {groups[0]} to {last}"
            raise DataError(f"{self.path}, {where}: damaged ({reason}); fetch it again") from error

    def labels(self) -> list:
        """Return the label of every row; None where the file has no label column."""
        if self._chosen.label is None:
            return [None] * len(self)
        with self._lock:
            return (
                self._read(range(len(self._starts) - 1), [self._chosen.label]).column(0).to_pylist()
            )

    def label_names(self) -> list[str] | None:
        """Return the ClassLabel names that Hugging Face keeps in the Arrow metadata, or None."""
        raw = (self._file.schema_arrow.metadata or {}).get(b"huggingface")
        try:
            feature = json.loads(raw)["info"]["features"][self._chosen.label] if raw else None
        except (ValueError, KeyError, TypeError):
            return None
        if isinstance(feature, list) and feature:
            feature = feature[0]
        if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        return feature.get("names") if isinstance(feature, dict) else None

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            found = self._kept.get(number)
            if found is None:
                found = self._kept[number] = self._read(range(number, number + 1), self._wanted)
            _memory.use(self, number, found.nbytes)
            return found

    def forget(self, number: int) -> None:
        """Drop a row group from memory; it is read again when it is needed."""
        self._kept.pop(number, None)

    def __getitem__(self, index: int) -> Row:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        table = self._group(group)
        local = index - int(self._starts[group])

        def cell(name: str | None) -> Any:
            return None if name is None else table.column(name)[local].as_py()

        chosen = self._chosen
        key = _key(cell(chosen.key), index)
        image = None if chosen.image is None else self._image(cell(chosen.image), index)
        texts = () if chosen.text is None else sentences(cell(chosen.text))
        return Row(key, image=image, texts=texts, label=cell(chosen.label))

    def _image(self, value: object, index: int) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return read_file(self._root, value, f"{self.path}, row {index}")
        raise BadRow("has no image bytes")


def _key(value: object, index: int) -> str:
    return str(index) if value is None else str(value)


class _Memory:
    """Which row groups of all files are in memory; when they are too many, those used longest ago
    are forgotten.
    """

    def __init__(self):
        self._sizes: OrderedDict[tuple[weakref.ref[ParquetShard], int], int] = (
            OrderedDict()
        )  # bytes, the last used last
        self._total, self._lock = 0, threading.Lock()

    def use(self, shard: ParquetShard, number: int, size: int) -> None:
        """Note that row group ``number`` of ``shard``, which takes ``size`` bytes, is used."""
        key = (weakref.ref(shard), number)
        with self._lock:
            self._total += size - self._sizes.pop(key, 0)
            self._sizes[key] = size
            while len(self._sizes) > GROUPS_KEPT and self._total > BYTES_KEPT:
                (oldest, its_number), bytes_of_it = self._sizes.popitem(last=False)
                self._total -= bytes_of_it
                found = oldest()
                if found is not None:
                    found.forget(its_number)


_memory = _Memory()
