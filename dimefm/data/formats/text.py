"""Plain text: one sentence a line, UTF-8.

``.txt.gz`` is read into memory, ``.txt`` at byte offsets. The key of a line is its number, counted
from 0.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from dimefm.data.rows import Columns, Row, Shard
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow, DataError

SUFFIXES = (".txt", ".txt.gz")
KINDS = frozenset({"text"})


def claims(path: Path) -> bool:
    """Every ``.txt`` file is plain text."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one text file."""
    return [TextShard(path, name)]


class Lines:
    """The lines of a text file as bytes without their newline, in any order.

    A last line without newline counts.
    """

    def __init__(self, path: Path):
        self.path = path
        self._bytes = _bytes_of(path)
        ends = np.flatnonzero(self._bytes == ord("\n")).astype(np.int64)
        size = len(self._bytes)
        last_end = ends[-1] if len(ends) else -1
        if last_end < size - 1:  # the last line has no newline
            ends = np.append(ends, size)
        self._ends = ends

    def __reduce__(self):
        return Lines, (self.path,)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) + 1 if index else 0
        end = int(self._ends[index])
        line = self._bytes[start:end].tobytes()
        return line.removesuffix(b"\r")


def _bytes_of(path: Path) -> np.ndarray:
    """Return the bytes of a text file, uint8; those of a gzip file unpacked into memory."""
    if path.suffix == ".gz":
        try:
            text = gzip.decompress(path.read_bytes())
        except (OSError, EOFError) as error:
            raise DataError(
                f"{path}: not a whole gzip file ({error}). Fix: fetch or write it again"
            ) from error
        return np.frombuffer(text, dtype=np.uint8)
    if not os.path.getsize(path):  # an empty file cannot be mapped
        return np.empty(0, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r")


class TextShard(Divisible):
    """One text file."""

    def __init__(self, path: Path, name: str):
        super().__init__(path, name)
        self._lines = Lines(path)

    def __len__(self) -> int:
        return len(self._lines)

    def keys_of(self, rows: range) -> list[str]:
        return [str(index) for index in rows]

    def __getitem__(self, index: int) -> Row:
        try:
            text = self._lines[index].decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow(f"is not UTF-8: {error.reason} at byte {error.start}") from error
        return Row(str(index), texts=(text,))
