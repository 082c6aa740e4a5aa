"""Feature files of NumPy: ``.npy`` and ``.npz``, in versions 1 and 2 of numpy.lib.format."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from dimefm.cache.importing.vectors import (
    ROW_NUMBERS,
    Vectors,
    check_count,
    checked,
    only,
    read_keys,
    refuse_bomb,
    refused,
    row_numbers,
    texts,
)
from dimefm.errors import CacheError
from dimefm.runtime.text import first_few

KEYS_ARRAY = "keys"


def open_npy(path: Path, key_file: Path | None = None, column: str | None = None) -> Vectors:
    """Open one ``.npy`` file; its keys are in ``key_file`` (and ``column``), else row numbers.

    Raises CacheError for a file that is cut short or pickled, no array [n, D] of floats, or another
    number of keys.
    """
    rows = map_npy(path)
    named_by = ROW_NUMBERS
    if key_file is not None:
        named_by = _named(key_file, column)
        keys = read_keys(key_file, column)
        check_count(path, len(rows), len(keys), key_file)

    def read(start: int, stop: int) -> tuple[list[str], np.ndarray]:
        if key_file is None:
            keys = row_numbers(start, stop)
        else:
            keys = read_keys(key_file, column)[start:stop]
        return keys, map_npy(path)[start:stop]

    return Vectors(
        path=path,
        form="npy",
        count=len(rows),
        dim=rows.shape[1],
        dtype=rows.dtype.name,
        read=read,
        named_by=named_by,
        key_files=(key_file,) if key_file else (),
    )


def map_npy(path: Path) -> np.ndarray:
    """Return the vectors [n, D] of a ``.npy`` file as a memory map.

    Raises CacheError when the file holds no vectors.
    """
    with refused(path, "not a whole .npy file of numbers", "fetch or write it again"):
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(file)
        header.check_bytes(size)
        with quiet_numpy():
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return checked(path, rows)


class Header(NamedTuple):
    """What a ``.npy`` file says of its array, and the byte at which the numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    def check_bytes(self, size: int) -> None:
        """Raise ValueError unless ``size`` bytes hold the whole array."""
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape {self.shape}")
        needed = self.start + math.prod(self.shape) * self.dtype.itemsize
        if needed > size:
            raise ValueError(f"shape {self.shape} needs {needed:,} bytes, there are {size:,}")


def _read_header(file: BinaryIO) -> Header:
    """Return the header of an open ``.npy`` file, before memory is asked for what it promises.

    Raises ValueError for one that holds Python objects, and whatever numpy raises for others.
    """
    version = np.lib.format.read_magic(file)
    with quiet_numpy():
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of the format holds tables, no plain numbers")
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return Header(shape, dtype, file.tell())


@contextlib.contextmanager
def quiet_numpy() -> Iterator[None]:
    """Keep numpy from warning of headers that Python 2 wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def open_npz(
    path: Path, array: str | None = None, key_file: Path | None = None, column: str | None = None
) -> Vectors:
    """Open one ``.npz`` file; its vectors are ``array``, or the only array besides the keys.

    Keys are those of ``key_file``, else the array ``column`` (default ``keys``, if the file has
    it), else row numbers. Raises CacheError as :func:`open_npy`, and when several arrays could be
    the vectors.
    """
    names = _names(path)
    key_array = None
    if key_file is None:
        key_array = column
        if not key_array and KEYS_ARRAY in names:
            key_array = KEYS_ARRAY
    chosen = array
    if not chosen:
        not_vectors = key_array or KEYS_ARRAY
        chosen = only(path, [name for name in names if name != not_vectors])
    for name in (chosen, key_array):
        if name is not None and name not in names:
            raise CacheError(
                f"{path}: there is no array {name}; it holds {first_few(names, 8)}. Fix: name one"
                " of them with --array"
            )
    rows = checked(f"{path}, array {chosen}", _load(path, chosen))
    count = len(rows)
    dim = rows.shape[1]
    dtype = rows.dtype.name

    def keys() -> list[str]:
        if key_file is not None:
            return read_keys(key_file, column)
        if key_array is None:
            return row_numbers(0, count)
        return texts(f"{path}, array {key_array}", _load(path, key_array))

    def read(start: int, stop: int) -> tuple[list[str], np.ndarray]:
        return keys()[start:stop], _load(path, chosen)[start:stop]

    check_count(path, count, len(keys()), key_file or path)
    named_by = ROW_NUMBERS
    if key_file is not None:
        named_by = _named(key_file, column)
    elif key_array is not None:
        named_by = f"array {key_array}"
    return Vectors(
        path=path,
        form="npz",
        count=count,
        dim=dim,
        dtype=dtype,
        read=read,
        named_by=named_by,
        key_files=(key_file,) if key_file else (),
    )


def _named(key_file: Path, column: str | None) -> str:
    return f"{key_file.name}, column {column}" if column else key_file.name


def _names(path: Path) -> list[str]:
    with refused(path, "not a whole .npz file", "fetch or write it again"):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return list(arrays.files)


def _load(path: Path, name: str) -> np.ndarray:
    with refused(f"{path}, array {name}", "cannot be read", "write the file again"):
        _check_member(path, name)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays, quiet_numpy():
            array = arrays[name]
        if not isinstance(array, np.ndarray):
            raise ValueError("no array")
        return array


def _check_member(path: Path, name: str) -> None:
    """Raise ValueError for an array that promises more bytes than the file holds, or is a bomb."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        info = members.get(f"{name}.npy") or members[name]
        refuse_bomb(info.compress_size, info.file_size)
        with archive.open(info) as file:
            header = _read_header(file)  # type: ignore[arg-type]
            header.check_bytes(info.file_size)
