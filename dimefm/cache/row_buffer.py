"""Vectors on their way into a shard: gathered on disk in the stored dtype, so that memory does not
grow with the shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.cache.int8 import AffineQuantizer
from dimefm.cache.manifest import Manifest
from dimefm.errors import CacheError

FEW = 512  # rows that stay in the processor's cache while they are checked


class Spool:
    """The stored rows of one shard on their way to its file, so that memory does not grow with the
    shard.

    ``keys`` are those of the shard so far; the file has ``count`` rows, fewer where several keys
    have one.
    """

    def __init__(self, path: Path, header: Manifest, source: str):
        self.path, self.header, self.source = path, header, source
        self.keys, self.count, self._places = list[str](), 0, [np.empty(0, np.int64)]
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._failed(error) from error

    def add(self, keys: Sequence[str], rows: np.ndarray, places: np.ndarray | None = None) -> None:
        """Append rows [n, dim], floats or in the stored dtype; raise CacheError when one cannot be
        stored.

        ``places`` [len(keys)] says which row of the file each key has, new or earlier; without it
        the new ones, in order.
        """
        if places is None:
            places = np.arange(self.count, self.count + len(rows))
        rows = self._stored(rows, places)
        try:
            self._file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise self._failed(error) from error
        self.keys += keys
        self.count += len(rows)
        self._places.append(places)

    def _stored(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return rows in the stored dtype; the number in a complaint is that of the first key with
        the row.
        """
        try:
            return stored(rows, self.header, self.source, len(self.keys))
        except CacheError:
            for place in range(len(rows) if len(places) > len(rows) else 0):
                first = int(np.flatnonzero(places == self.count + place)[0])
                stored(rows[place : place + 1], self.header, self.source, len(self.keys) + first)
            raise

    def rows(self) -> Spooled:
        """Return the rows of all keys so far, [n, dim] in the stored dtype."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self._places = [np.concatenate(self._places)]
        return Spooled(self.path, self._places[0], self.header.dim, np.dtype(self.header.dtype))

    def _failed(self, error: OSError) -> CacheError:
        return CacheError(
            f"{self.path}: the rows of {self.source} cannot be written ({error.strerror or error});"
            " finished shards are kept: make room, then run the same command again"
        )

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


class Spooled:
    """Rows [n, dim] in a file that were checked when they were written there; slices of them are
    read, nothing is mapped.

    Row i stands at ``places[i]`` of the file.
    """

    def __init__(self, path: Path, places: np.ndarray, dim: int, dtype: np.dtype):
        self.path, self.places, self.shape, self.dtype = path, places, (len(places), dim), dtype
        self.nbytes = len(places) * dim * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if not isinstance(rows, slice):
            return self[rows : rows + 1][0]
        places = self.places[rows]
        wanted, which = np.unique(places, return_inverse=True)
        found = [
            self._read(run) for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        ]
        return (
            found[0]
            if len(found) == 1 and np.array_equal(wanted, places)
            else np.concatenate(found)[which]
        )

    def _read(self, run: np.ndarray) -> np.ndarray:
        """Return the rows at places that follow each other."""
        dim, first = self.shape[1], int(run[0]) if len(run) else 0
        found = np.fromfile(
            self.path, self.dtype, len(run) * dim, offset=first * dim * self.dtype.itemsize
        )
        return found.reshape(-1, dim)


def stored(rows: np.ndarray, header: Manifest, source: str, first: int = 0) -> np.ndarray:
    """Return rows [n, dim], floats or in the stored dtype already, in the dtype of ``header``.

    ``first`` is the number of the first, for messages. Raises CacheError naming the row that is not
    finite, overflows the dtype, or lies outside the int8 code.
    """
    if header.code is not None:
        try:
            return (
                rows
                if rows.dtype == np.int8
                else AffineQuantizer.from_fields(header.code).encode(rows, first)
            )
        except CacheError as error:
            raise CacheError(f"{source}, stored {error}") from error
    with np.errstate(over="ignore"):
        rows = rows.astype(header.dtype, copy=False)
    for start in range(0, len(rows), FEW):
        part = rows[start : start + FEW]
        if not _finite(part):
            row = first + start + int(np.flatnonzero(~np.isfinite(part).all(1))[0])
            raise CacheError(
                f"{source}, stored row {row}: the vector is not finite as {header.dtype};"
                " quarantine it before writing"
            )
    return rows


def _finite(rows: np.ndarray) -> bool:
    """Say whether all numbers are finite; float16 is judged by its exponent bits, which numpy does
    five times faster.
    """
    if rows.dtype != np.float16:
        return bool(np.isfinite(rows).all())
    return bool((rows.view(np.uint16) & 0x7C00).max(initial=0) < 0x7C00)
