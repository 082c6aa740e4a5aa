"""Feature files of NumPy: ``.npy`` and ``.npz``, in versions 1 to 3 of numpy.lib.format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dimefm.cache.importing.vectors import (
    DAMAGE,
    ROW_NUMBERS,
    Vectors,
    check_count,
    checked,
    first_line,
    read_keys,
    row_numbers,
)
from dimefm.errors import CacheError

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
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise CacheError(
            f"{path}: not a whole .npy file of numbers ({first_line(error)}). Fix: fetch or write"
            " it again"
        ) from error
    return checked(path, rows)


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
        chosen = _only(path, [name for name in names if name != not_vectors])
    for name in (chosen, key_array):
        if name is not None and name not in names:
            raise CacheError(f"{path}: there is no array {name}; it holds {', '.join(names)}")
    rows = checked(f"{path}, array {chosen}", _load(path, chosen))
    count = len(rows)
    dim = rows.shape[1]
    dtype = rows.dtype.name

    def keys() -> list[str]:
        if key_file is not None:
            return read_keys(key_file, column)
        if key_array is None:
            return row_numbers(0, count)
        return _texts(f"{path}, array {key_array}", _load(path, key_array))

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
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return list(arrays.files)
    except (*DAMAGE, AttributeError, TypeError) as error:
        raise CacheError(
            f"{path}: not a whole .npz file ({first_line(error)}). Fix: fetch or write it again"
        ) from error


def _load(path: Path, name: str) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays[name]
    except DAMAGE as error:
        raise CacheError(
            f"{path}, array {name}: cannot be read ({first_line(error)}). Fix: write the file again"
        ) from error


def _only(path: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    held = "there are no vectors"
    if names:
        held = f"{len(names)} arrays could be the vectors ({', '.join(names)})"
    raise CacheError(f"{path}: {held}. Fix: name one with --array")


def _texts(where: str, keys: np.ndarray) -> list[str]:
    """Return the keys of a one-dimensional array of text, bytes (UTF-8) or whole numbers."""
    if keys.ndim != 1 or keys.dtype.kind not in "USiu":
        raise CacheError(
            f"{where}: {keys.dtype} of shape {list(keys.shape)}, expected text [rows]. Fix: give"
            " the keys by --keys"
        )
    try:
        return [
            key.decode("utf-8") if isinstance(key, bytes) else str(key) for key in keys.tolist()
        ]
    except UnicodeDecodeError as error:
        raise CacheError(
            f"{where}: a key is not UTF-8 ({error}). Fix: give the keys by --keys"
        ) from error
