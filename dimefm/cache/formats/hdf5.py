"""HDF5: datasets ``row`` [rows, dim], contiguous and little-endian, and ``key`` [rows] of UTF-8
strings, gzip.

The file is laid out by h5py in memory, without its rows, and then written front to back by Python:
libhdf5 ends the process when its own write meets a full disk, and would keep a second copy of the
rows.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from dimefm.cache.formats import BLOCK
from dimefm.errors import CacheError

SUFFIXES = (".h5",)
DEFAULT_DTYPE = "float16"
LONGEST_KEY = 65_535  # bytes
CHUNK_KEYS, CHUNK_BYTES = 4096, 1 << 20  # of a chunk of keys, at most


def write(files: dict[str, BinaryIO], keys: list[str], rows: np.ndarray) -> int | None:
    """Write one shard; raise CacheError for a key that HDF5 cannot hold. Returns the offset of the
    rows.
    """
    layout = _Layout()
    little = rows.dtype.newbyteorder("<")
    with h5py.File(layout, "w", alignment_threshold=4096, alignment_interval=64) as file:
        stored = _empty(file, rows.shape, little)
        offset = stored.id.get_offset()
        width = _longest(keys)
        chunk, text = (
            max(1, min(len(keys), _keys_at_once(width))),
            h5py.string_dtype("utf-8", width),
        )
        packed = (
            {"chunks": (chunk,), "compression": "gzip", "compression_opts": 4, "shuffle": True}
            if keys
            else {}
        )
        column = file.create_dataset("key", (len(keys),), dtype=text, **packed)
        for start in range(0, len(keys), chunk):
            column[start : start + chunk] = np.array(
                [key.encode("utf-8") for key in keys[start : start + chunk]], text
            )
    out = files[".h5"]
    head, tail = layout.split(offset, rows.nbytes)
    out.write(head)
    for start in range(0, len(rows), BLOCK):
        out.write(np.ascontiguousarray(rows[start : start + BLOCK], dtype=little))
    out.write(tail)
    return offset


def _empty(file: h5py.File, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Create dataset ``row`` with its place reserved and nothing written there."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    made = h5py.h5d.create(
        file.id, b"row", h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape), settings
    )
    return h5py.Dataset(made)


def _keys_at_once(width: int) -> int:
    """Return how many keys padded to ``width`` bytes stand in a chunk, so that one long key does
    not cost memory.
    """
    return max(1, min(CHUNK_KEYS, CHUNK_BYTES // width))


def _longest(keys: list[str]) -> int:
    """Return the bytes of the longest key, at least 1; raise CacheError for a key that HDF5 cannot
    hold.
    """
    longest = 1
    for number, key in enumerate(keys):
        size = len(key.encode("utf-8"))
        if "\0" in key or size > LONGEST_KEY:
            raise CacheError(
                f"row {number}: the key {key[:64]!r} cannot stand in HDF5; use --format parquet"
            )
        longest = max(longest, size)
    return longest


class _Layout(io.RawIOBase):
    """A file in memory that keeps only what h5py writes, not the hole that it leaves for the
    rows.
    """

    def __init__(self):
        super().__init__()
        self._pieces: dict[int, bytes] = {}
        self._place = self._size = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data) -> int:
        self._pieces[self._place] = bytes(data)
        self._place += len(self._pieces[self._place])
        self._size = max(self._size, self._place)
        return len(data)

    def readinto(self, buffer) -> int:
        """Fill ``buffer`` with what was written there, zeros elsewhere."""
        start, found = self._place, bytearray(len(buffer))
        for place, piece in self._pieces.items():
            a, b = max(start, place), min(start + len(buffer), place + len(piece))
            if a < b:
                found[a - start : b - start] = piece[a - place : b - place]
        buffer[:] = found
        self._place += len(buffer)
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._place if size is None else size
        return self._size

    def split(self, offset: int | None, size: int) -> tuple[bytes, bytes]:
        """Return the bytes before and after the hole of ``size`` bytes at ``offset``."""
        if not size or offset is None:
            offset, size = self._size, 0
        self.seek(0)
        head = bytearray(offset)
        self.readinto(head)
        self.seek(offset + size)
        tail = bytearray(max(0, self._size - offset - size))
        self.readinto(tail)
        return bytes(head), bytes(tail)


def blocks(
    path: Path, shape: tuple[int, int], dtype: str
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield (keys, rows) of a shard, at most BLOCK rows each."""
    with h5py.File(path, "r") as file:
        rows, keys = _dataset(file, "row"), _dataset(file, "key")
        if rows.shape != shape or rows.dtype != np.dtype(dtype) or rows.chunks is not None:
            raise ValueError(
                f"dataset 'row' is {rows.dtype}{list(rows.shape)}, expected contiguous"
                f" {dtype}{list(shape)}"
            )
        if keys.shape != shape[:1] or keys.dtype.kind != "S" or keys.dtype.itemsize > LONGEST_KEY:
            raise ValueError(
                f"dataset 'key' is {keys.dtype}{list(keys.shape)}, expected {shape[0]} UTF-8"
                " strings"
            )
        at_once = _keys_at_once(keys.dtype.itemsize)
        if keys.chunks is not None and keys.chunks[0] > at_once:
            raise ValueError(
                f"dataset 'key' has chunks of {keys.chunks[0]} keys, expected at most {at_once}"
            )
        for start in range(0, shape[0], BLOCK):
            end = min(start + BLOCK, shape[0])
            parts = (
                keys[first : min(first + at_once, end)] for first in range(start, end, at_once)
            )
            yield [key.decode("utf-8") for part in parts for key in part], rows[start:end]


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset that lies in this very file; links to other files are refused."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
        file[name], h5py.Dataset
    ):
        raise ValueError(f"no dataset '{name}' of its own")
    found = file[name]
    if found.external or found.is_virtual:
        raise ValueError(f"dataset '{name}' points to another file")
    return found
