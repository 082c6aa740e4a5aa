"""The rows of one shard before its file is written: on disk, in the stored dtype, so that memory
does not grow with the shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.cache.int8 import AffineQuantizer
from dimefm.cache.manifest import Manifest
from dimefm.errors import CacheError

CHECKED_ROWS = 512  # rows checked at once: few enough for the processor's cache


class RowBuffer:
    """Gathers the keys and rows of one shard; the rows are appended to a temporary file.

    ``keys`` are all keys so far. The file has ``count`` rows, which may be fewer than the keys:
    several keys may share one row.
    """

    def __init__(self, path: Path, header: Manifest, source: str):
        self.path = path
        self.header = header
        self.source = source
        self.keys: list[str] = []
        self.count = 0
        self._places = [np.empty(0, np.int64)]
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._failed(error) from error

    def add(self, keys: Sequence[str], rows: np.ndarray, places: np.ndarray | None = None) -> None:
        """Append rows [n, dim], floats or in the stored dtype.

        ``places`` [len(keys)] is the row of the file for each key, new or earlier; by default the
        new rows in order. Raises CacheError when a row cannot be stored.
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
        """Return rows in the stored dtype; an error has the number of the row's first key."""
        try:
            return stored(rows, self.header, self.source, len(self.keys))
        except CacheError:
            if len(places) > len(rows):
                self._refuse_by_key(rows, places)
            raise

    def _refuse_by_key(self, rows: np.ndarray, places: np.ndarray) -> None:
        """Raise the CacheError of the first bad row with the number of the row's first key."""
        for number in range(len(rows)):
            keys_of_row = np.flatnonzero(places == self.count + number)
            first_key = len(self.keys) + int(keys_of_row[0])
            stored(rows[number : number + 1], self.header, self.source, first_key)

    def rows(self) -> BufferedRows:
        """Return the rows of all keys so far, [n, dim] in the stored dtype."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self._places = [np.concatenate(self._places)]
        dtype = np.dtype(self.header.dtype)
        return BufferedRows(self.path, self._places[0], self.header.dim, dtype)

    def _failed(self, error: OSError) -> CacheError:
        return CacheError(
            f"{self.path}: the rows of {self.source} cannot be written ({error.strerror or error});"
            " finished shards are kept. Fix: make room, then run the same command again"
        )

    def __enter__(self) -> RowBuffer:
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


class BufferedRows:
    """Rows [n, dim] in a file, checked when they were written; slices are read, nothing is mapped.

    Row i is row ``places[i]`` of the file.
    """

    def __init__(self, path: Path, places: np.ndarray, dim: int, dtype: np.dtype):
        self.path = path
        self.places = places
        self.shape = (len(places), dim)
        self.dtype = dtype
        self.nbytes = len(places) * dim * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if not isinstance(rows, slice):
            return self[rows : rows + 1][0]
        places = self.places[rows]
        distinct, inverse = np.unique(places, return_inverse=True)
        gaps = np.diff(distinct) > 1
        run_starts = np.flatnonzero(gaps) + 1
        runs = [self._read(run) for run in np.split(distinct, run_starts)]
        if len(runs) == 1 and np.array_equal(distinct, places):
            return runs[0]
        return np.concatenate(runs)[inverse]

    def _read(self, run: np.ndarray) -> np.ndarray:
        """Return the rows of the file at consecutive places."""
        dim = self.shape[1]
        first = int(run[0]) if len(run) else 0
        offset = first * dim * self.dtype.itemsize
        numbers = np.fromfile(self.path, self.dtype, len(run) * dim, offset=offset)
        return numbers.reshape(-1, dim)


def stored(rows: np.ndarray, header: Manifest, source: str, first: int = 0) -> np.ndarray:
    """Return rows [n, dim], floats or in the stored dtype already, in the dtype of ``header``.

    ``first`` is the number of the first row, for messages. Raises CacheError naming the row that is
    not finite, overflows the dtype, or lies outside the int8 code.
    """
    if header.code is not None:
        return _quantized(rows, header.code, source, first)
    with np.errstate(over="ignore"):
        rows = rows.astype(header.dtype, copy=False)
    for start in range(0, len(rows), CHECKED_ROWS):
        part = rows[start : start + CHECKED_ROWS]
        if not _is_finite(part):
            bad_rows = np.flatnonzero(~np.isfinite(part).all(1))
            row = first + start + int(bad_rows[0])
            raise CacheError(
                f"{source}, stored row {row}: the vector is not finite as {header.dtype}."
                " Fix: quarantine it before writing"
            )
    return rows


def _quantized(rows: np.ndarray, code: dict, source: str, first: int) -> np.ndarray:
    if rows.dtype == np.int8:
        return rows
    try:
        return AffineQuantizer.from_fields(code).encode(rows, first)
    except CacheError as error:
        raise CacheError(f"{source}, stored {error}") from error


def _is_finite(rows: np.ndarray) -> bool:
    """Return whether all numbers are finite.

    float16 is checked by its exponent bits, which numpy does five times faster.
    """
    if rows.dtype != np.float16:
        return bool(np.isfinite(rows).all())
    exponents = rows.view(np.uint16) & 0x7C00
    return bool(exponents.max(initial=0) < 0x7C00)
