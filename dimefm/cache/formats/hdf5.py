"""HDF5: datasets ``key`` [rows] of UTF-8 strings and ``row`` [rows, dim], contiguous, so that rows can be memory-mapped."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

from dimefm.errors import CacheError

SUFFIXES = (".h5",)
DEFAULT_DTYPE = "float16"


def write(paths: dict[str, Path], keys: list[str], rows: np.ndarray) -> None:
    """Write one shard; ``rows`` is [len(keys), dim] in the dtype to store. Raises CacheError for a key with a NUL."""
    for number, key in enumerate(keys):
        if "\0" in key:
            raise CacheError(f"row {number}: the key {key!r} cannot stand in HDF5; use --format parquet")
    image = io.BytesIO()  # libhdf5 ends the process when its own write meets a full disk
    with h5py.File(image, "w") as file:
        file.create_dataset("row", data=rows)
        file.create_dataset("key", data=np.array(keys, dtype=object), dtype=h5py.string_dtype(), shape=(len(keys),))
    paths[".h5"].write_bytes(image.getbuffer())


def read(path: Path, dtype: str, dim: int) -> tuple[list[str], np.ndarray]:
    """Return (keys, rows [n, dim])."""
    with h5py.File(path, "r") as file:
        return [key.decode("utf-8") for key in file["key"][:]], file["row"][:]


def map(path: Path, shape: tuple[int, int], dtype: str) -> np.ndarray | None:
    """Return the rows as a read-only memory map."""
    with h5py.File(path, "r") as file:
        offset = file["row"].id.get_offset()
    if offset is None:
        return np.empty(shape, dtype=dtype) if shape[0] == 0 else None
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
