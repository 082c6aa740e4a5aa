"""Parquet: ``key, image, label`` or ``key, text``; images as encoded bytes or as Hugging Face's ``{bytes, path}``.

Only the columns that are wanted are read. Random rows are served from whole row groups; the last few stay in memory
(:data:`GROUPS_KEPT` per shard). Shuffled training over large row groups therefore re-reads them: convert such sources to
TSV or tar, or write row groups of a few hundred images.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.data._columns import Chosen, choose, read_file, sentences
from dimefm.data.rows import Columns, Row, Shard
from dimefm.errors import BadRow, DataError

SUFFIXES = (".parquet",)
KINDS = frozenset({"image", "text"})
GROUPS_KEPT = 64


def claims(path: Path) -> bool:
    """Every ``.parquet`` file is Parquet."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one Parquet file; raise DataError when it is damaged or lacks the columns that ``kind`` needs."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); fetch or write it again"
        ) from error
    return [ParquetShard(path, name, file, choose(path, file.schema_arrow.names, kind, columns), columns.root)]


class ParquetShard(Shard):
    """One Parquet file."""

    def __init__(self, path: Path, name: str, file: pq.ParquetFile, chosen: Chosen, root: Path | None):
        super().__init__(path, name)
        self._file = file
        self._chosen = chosen
        self._root = root or path.parent
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *groups])
        self._wanted = [name for name in (chosen.key, chosen.image, chosen.text, chosen.label) if name]
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_file": None, "_lock": None, "_kept": OrderedDict()}

    def __setstate__(self, state):
        self.__dict__.update(state, _file=pq.ParquetFile(state["path"]), _lock=threading.Lock())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def keys(self) -> list[str]:
        if self._chosen.key is None:
            return [str(index) for index in range(len(self))]
        column = pq.read_table(self.path, columns=[self._chosen.key]).column(0)
        return [_key(value, index) for index, value in enumerate(column.to_pylist())]

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            if number not in self._kept:
                try:
                    table = self._file.read_row_group(number, columns=self._wanted)
                except (pa.ArrowInvalid, OSError) as error:
                    reason = str(error).splitlines()[0]
                    raise DataError(f"{self.path}, row group {number}: damaged ({reason}); fetch it again") from error
                self._kept[number] = table
                while len(self._kept) > GROUPS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]

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
