"""HDF5: datasets ``row`` [rows, dim] and ``key`` [rows].

The rows are contiguous and little-endian, the keys are UTF-8 strings compressed by gzip. h5py lays
out the file in memory, without its rows, and then Python writes it front to back: libhdf5 ends the
process when its own write meets a full disk, and would keep a second copy of the rows.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from dimefm.cache.formats import BLOCK, Block
from dimefm.errors import CacheError

SUFFIXES = (".h5",)
DEFAULT_DTYPE = "float16"
LONGEST_KEY = 65_535  # bytes
MOST_CHUNK_KEYS = 4096
MOST_CHUNK_BYTES = 1 << 20  # of keys


def write(files: dict[str, BinaryIO], keys: list[str], rows: np.ndarray) -> int | None:
    """Write one shard and return the offset of the rows.

    Raises CacheError for a key that HDF5 cannot hold.
    """
    layout = _Layout()
    little = rows.dtype.newbyteorder("<")
    with h5py.File(layout, "w", alignment_threshold=4096, alignment_interval=64) as file:
        row_dataset = _create_rows(file, rows.shape, little)
        offset = row_dataset.id.get_offset()
        _write_keys(file, keys)
    head, tail = layout.split(offset, rows.nbytes)
    out = files[".h5"]
    out.write(head)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        out.write(np.ascontiguousarray(block, dtype=little))
    out.write(tail)
    return offset


def _create_rows(file: h5py.File, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Create dataset ``row``: its place in the file is reserved, and nothing is written there."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    row_type = h5py.h5t.py_create(dtype)
    space = h5py.h5s.create_simple(shape)
    dataset_id = h5py.h5d.create(file.id, b"row", row_type, space, settings)
    return h5py.Dataset(dataset_id)


def _write_keys(file: h5py.File, keys: list[str]) -> None:
    """Create dataset ``key``, compressed when there are keys, and fill it chunk by chunk."""
    width = _longest(keys)
    text = h5py.string_dtype("utf-8", width)
    most = _keys_at_once(width)
    chunk = max(1, min(len(keys), most))
    settings: dict[str, Any] = {}
    if keys:
        settings["chunks"] = (chunk,)
        settings["compression"] = "gzip"
        settings["compression_opts"] = 4
        settings["shuffle"] = True
    dataset = file.create_dataset("key", (len(keys),), dtype=text, **settings)
    for start in range(0, len(keys), chunk):
        stop = start + chunk
        encoded = [key.encode("utf-8") for key in keys[start:stop]]
        dataset[start:stop] = np.array(encoded, text)


def _keys_at_once(width: int) -> int:
    """Return the keys of ``width`` bytes in a chunk; it bounds the memory that a long key costs."""
    return max(1, min(MOST_CHUNK_KEYS, MOST_CHUNK_BYTES // width))


def _longest(keys: list[str]) -> int:
    """Return the bytes of the longest key, at least 1.

    Raises CacheError for a key that HDF5 cannot hold.
    """
    longest = 1
    for number, key in enumerate(keys):
        size = len(key.encode("utf-8"))
        if "\0" in key or size > LONGEST_KEY:
            raise CacheError(
                f"row {number}: the key {key[:64]!r} cannot stand in HDF5. Fix: use --format"
                " parquet"
            )
        longest = max(longest, size)
    return longest


class _Layout(io.RawIOBase):
    """A file in memory of what h5py writes, without the gap that it leaves for the rows."""

    def __init__(self):
        super().__init__()
        self._pieces: dict[int, bytes] = {}  # place -> what was written there
        self._place = 0
        self._size = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        origins = (0, self._place, self._size)
        self._place = origins[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data) -> int:
        piece = bytes(data)
        self._pieces[self._place] = piece
        self._place += len(piece)
        self._size = max(self._size, self._place)
        return len(data)

    def readinto(self, buffer) -> int:
        """Fill ``buffer`` with what was written there, and zeros elsewhere."""
        start = self._place
        stop = start + len(buffer)
        content = bytearray(len(buffer))
        for place, piece in self._pieces.items():
            first = max(start, place)
            end = min(stop, place + len(piece))
            if first < end:
                target = slice(first - start, end - start)
                source = slice(first - place, end - place)
                content[target] = piece[source]
        buffer[:] = content
        self._place = stop
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._place if size is None else size
        return self._size

    def split(self, offset: int | None, size: int) -> tuple[bytes, bytes]:
        """Return the bytes before and after the gap of ``size`` bytes at ``offset``."""
        if not size or offset is None:
            offset = self._size
            size = 0
        head = bytearray(offset)
        self.seek(0)
        self.readinto(head)
        tail_start = offset + size
        tail = bytearray(max(0, self._size - tail_start))
        self.seek(tail_start)
        self.readinto(tail)
        return bytes(head), bytes(tail)


def blocks(
    path: Path,
    shape: tuple[int, int],
    dtype: str,
) -> Iterator[Block]:
    """Yield (keys, rows) of a shard, at most BLOCK rows each."""
    with h5py.File(path, "r") as file:
        rows = _dataset(file, "row")
        keys = _dataset(file, "key")
        _check_rows(rows, shape, dtype)
        _check_keys(keys, shape[0])
        for start in range(0, shape[0], BLOCK):
            stop = min(start + BLOCK, shape[0])
            yield _decoded(keys, start, stop), rows[start:stop]


def keys(path: Path, count: int) -> Iterator[list[str]]:
    """Yield the keys of a shard of ``count`` rows in blocks; the rows are not read."""
    with h5py.File(path, "r") as file:
        dataset = _dataset(file, "key")
        _check_keys(dataset, count)
        for start in range(0, count, BLOCK):
            yield _decoded(dataset, start, min(start + BLOCK, count))


def _check_rows(rows: h5py.Dataset, shape: tuple[int, int], dtype: str) -> None:
    is_contiguous = rows.chunks is None
    if rows.shape != shape or rows.dtype != np.dtype(dtype) or not is_contiguous:
        raise ValueError(
            f"dataset 'row' is {rows.dtype}{list(rows.shape)}, expected contiguous"
            f" {dtype}{list(shape)}"
        )


def _check_keys(keys: h5py.Dataset, count: int) -> None:
    width = keys.dtype.itemsize
    if keys.shape != (count,) or keys.dtype.kind != "S" or width > LONGEST_KEY:
        raise ValueError(
            f"dataset 'key' is {keys.dtype}{list(keys.shape)}, expected {count} UTF-8 strings"
        )
    at_once = _keys_at_once(width)
    if keys.chunks is not None and keys.chunks[0] > at_once:
        raise ValueError(
            f"dataset 'key' has chunks of {keys.chunks[0]} keys, expected at most {at_once}"
        )


def _decoded(dataset: h5py.Dataset, start: int, stop: int) -> list[str]:
    """Return the keys of the rows from ``start`` to ``stop``, read chunk by chunk."""
    at_once = _keys_at_once(dataset.dtype.itemsize)
    keys: list[str] = []
    for first in range(start, stop, at_once):
        part = dataset[first : min(first + at_once, stop)]
        keys += [key.decode("utf-8") for key in part]
    return keys


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset that lies in this very file; links to other files are refused."""
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"no dataset '{name}' of its own")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"no dataset '{name}' of its own")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"dataset '{name}' points to another file")
    return dataset
