"""Vectors on their way into a shard: gathered on disk in the stored dtype, so that memory does not grow with the shard."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.cache.code import Code
from dimefm.cache.manifest import Manifest
from dimefm.errors import CacheError

FEW = 512  # rows that stay in the processor's cache while they are checked


class Spool:
    """The stored rows of one shard on their way to its file, so that memory does not grow with the shard."""

    def __init__(self, path: Path, header: Manifest, source: str):
        self.path, self.header, self.source = path, header, source
        self.keys: list[str] = []
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._failed(error) from error

    def add(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Append rows [len(keys), dim], floats or in the stored dtype; raise CacheError when one cannot be stored."""
        rows = stored(rows, self.header, self.source, len(self.keys))
        try:
            self._file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise self._failed(error) from error
        self.keys += keys

    def rows(self) -> Spooled:
        """Return all rows so far, [n, dim] in the stored dtype."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        return Spooled(self.path, (len(self.keys), self.header.dim), np.dtype(self.header.dtype))

    def _failed(self, error: OSError) -> CacheError:
        return CacheError(
            f"{self.path}: the rows of {self.source} cannot be written ({error.strerror or error}); finished shards are "
            "kept: make room, then run the same command again"
        )

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


class Spooled:
    """Rows [n, dim] in a file that were checked when they were written there; slices of them are read, nothing is mapped."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype):
        self.path, self.shape, self.dtype = path, shape, dtype
        self.nbytes = shape[0] * shape[1] * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self)) if isinstance(rows, slice) else (rows, rows + 1, 1)
        place, dim = start * self.shape[1] * self.dtype.itemsize, self.shape[1]
        found = np.fromfile(self.path, self.dtype, max(0, stop - start) * dim, offset=place).reshape(-1, dim)
        return found if isinstance(rows, slice) else found[0]


def stored(rows: np.ndarray, header: Manifest, source: str, first: int = 0) -> np.ndarray:
    """Return rows [n, dim], floats or in the stored dtype already, in the dtype of ``header``.

    ``first`` is the number of the first, for messages. Raises CacheError naming the row that is not finite, overflows the
    dtype, or lies outside the int8 code.
    """
    if header.code is not None:
        try:
            return rows if rows.dtype == np.int8 else Code.of(header.code).encode(rows, first)
        except CacheError as error:
            raise CacheError(f"{source}, stored {error}") from error
    with np.errstate(over="ignore"):
        rows = rows.astype(header.dtype, copy=False)
    for start in range(0, len(rows), FEW):
        part = rows[start : start + FEW]
        if not _finite(part):
            row = first + start + int(np.flatnonzero(~np.isfinite(part).all(1))[0])
            raise CacheError(
                f"{source}, stored row {row}: the vector is not finite as {header.dtype}; quarantine it before writing"
            )
    return rows


def _finite(rows: np.ndarray) -> bool:
    """Say whether all numbers are finite; float16 is judged by its exponent bits, which numpy does five times faster."""
    if rows.dtype != np.float16:
        return bool(np.isfinite(rows).all())
    return bool((rows.view(np.uint16) & 0x7C00).max(initial=0) < 0x7C00)
