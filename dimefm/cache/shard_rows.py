"""Two ways to read rows of shard files: from memory maps, or by one read for each row.

Maps are faster, but the pages of a large cache that were read once stay in memory. So a small cache
is mapped (:class:`MappedRows`), and a large cache is read (:class:`PreadRows`).
"""

from __future__ import annotations

import abc
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.errors import CacheError


class ShardHandle(abc.ABC):
    """An open file that holds rows [n, dim] as one array from byte ``offset`` on.

    It is closed when the handle is no longer used. Raises ValueError when the file is too short.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, int], dtype: np.dtype):
        self.path = path
        self.offset = offset
        self.row_bytes = shape[1] * dtype.itemsize
        self.end = offset + shape[0] * self.row_bytes
        self.file = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self.file)
        size = os.fstat(self.file).st_size
        if size < self.end:
            raise ValueError(f"{size} bytes, its rows end at byte {self.end}")

    @abc.abstractmethod
    def read(self, start: int, out: np.ndarray) -> None:
        """Fill ``out`` [n, dim], contiguous, with the rows from ``start`` on.

        Raises CacheError when the file ends before.
        """


def cut_short(path: Path, what: str) -> CacheError:
    """Return the error for a file that became shorter after it was opened."""
    remedy = "restore it, or extract again"
    if path.suffix == ".flat":
        remedy = f"remove {path.name} and its .sha256, it is made again"
    return CacheError(f"{path}: {what}; it was cut short while it was read. Fix: {remedy}")


class MappedShard(ShardHandle):
    """A shard file in a memory map: ``rows`` [n, dim], and ``raw``, the bytes of the rows."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, int], dtype: np.dtype):
        super().__init__(path, offset, shape, dtype)
        self.rows = np.empty((0, shape[1]), dtype=dtype)
        self.raw = memoryview(b"")
        self.map: mmap.mmap | None = None
        if shape[0]:
            self.map = mmap.mmap(self.file, 0, access=mmap.ACCESS_READ)
            self.raw = memoryview(self.map)[offset : self.end]
            self.rows = np.frombuffer(self.raw, dtype=dtype).reshape(shape)
        self.close()

    def checked(self) -> MappedShard:
        """Return this shard; raise CacheError when its file has become too short for its rows.

        Reading behind the end of a mapped file ends the process (SIGBUS), see
        :mod:`dimefm.runtime.bus_errors`.
        """
        if self.map is not None and self.map.size() < self.end:
            raise cut_short(self.path, f"{self.map.size()} bytes, its rows end at {self.end}")
        return self

    def read(self, start: int, out: np.ndarray) -> None:
        out[:] = self.checked().rows[start : start + len(out)]


class PreadShard(ShardHandle):
    """A shard file whose rows are read when they are asked for."""

    def read(self, start: int, out: np.ndarray) -> None:
        buffer = memoryview(out).cast("B")
        first_byte = self.offset + start * self.row_bytes
        done = 0
        while done < len(buffer):
            count = os.preadv(self.file, [buffer[done:]], first_byte + done)
            if count == 0:
                raise cut_short(self.path, f"ends before row {start + len(out)}")
            done += count


class MappedRows:
    """Reads rows of a cache whose shards are memory-mapped."""

    most_open = 8192  # shards that are mapped at once
    handle = MappedShard

    def __init__(self, dim: int, dtype: np.dtype):
        self.dim = dim
        self.dtype = dtype

    def gather(
        self,
        shard_of: Callable[[int], Any],
        numbers: np.ndarray,
        local: np.ndarray,
    ) -> np.ndarray:
        """Return rows [n, dim] in any order: row ``local[i]`` of shard ``numbers[i]``.

        ``shard_of`` returns the open shard (a MappedShard) of a number.
        """
        distinct = set(numbers.tolist())
        if len(distinct) == 1:
            shard = shard_of(distinct.pop()).checked()
            return np.take(shard.rows, local, axis=0)
        # rows of several shards: joining their bytes is faster than an assignment for each row
        row_bytes = self.dim * self.dtype.itemsize
        raw = {number: shard_of(number).checked().raw for number in distinct}
        starts = (local * row_bytes).tolist()
        pairs = zip(numbers.tolist(), starts, strict=True)
        pieces = [raw[number][start : start + row_bytes] for number, start in pairs]
        joined = bytearray().join(pieces)
        return np.frombuffer(joined, dtype=self.dtype).reshape(len(local), self.dim)


class PreadRows:
    """Reads rows of a cache one by one, so that memory does not grow with the cache."""

    most_open = 256  # shards that are open at once
    handle = PreadShard

    def __init__(self, dim: int, dtype: np.dtype):
        self.dim = dim
        self.dtype = dtype

    def gather(
        self,
        shard_of: Callable[[int], Any],
        numbers: np.ndarray,
        local: np.ndarray,
    ) -> np.ndarray:
        """Return rows [n, dim] in any order: row ``local[i]`` of shard ``numbers[i]``.

        ``shard_of`` returns the open shard (a PreadShard) of a number. Rows are read shard after
        shard, so that at most ``most_open`` shards are open.
        """
        rows = np.empty((len(local), self.dim), dtype=self.dtype)
        for i in np.lexsort((local, numbers)).tolist():
            shard = shard_of(int(numbers[i]))
            shard.read(int(local[i]), rows[i : i + 1])
        return rows
