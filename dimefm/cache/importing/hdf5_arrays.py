"""Embeddings in a dataset of an HDF5 file: one array [n, D], perhaps its keys [n] in another."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from dimefm.cache.importing.vectors import (
    FLOATS,
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

KEY_NAMES = ("key", "keys", "image_path")  # in order of preference
MOST_DATASETS = 1000
DEEPEST = 8  # groups in groups


def open_hdf5(
    path: Path,
    array: str | None = None,
    key_file: Path | None = None,
    key_name: str | None = None,
) -> Vectors:
    """Open an HDF5 file; its vectors are the dataset ``array``, or the only [n, D] of floats.

    Keys are those of ``key_file``, else of the dataset ``key_name``; without it ``key``, ``keys``
    or ``image_path``, else row numbers. Links to other files are not followed. Raises CacheError
    for a damaged file, a dataset that is not in it, and when several could be the vectors.
    """
    with refused(path, "not a whole HDF5 file", "fetch or write it again"):
        with h5py.File(path, "r") as file:
            names = _datasets(file)
            matrices = [name for name in names if _holds_vectors(file[name])]
    column = key_name if key_file is not None else None
    chosen_keys = None
    if key_file is None:
        chosen_keys = key_name or next((name for name in KEY_NAMES if name in names), None)
    chosen = array.strip("/") if array else only(path, matrices)
    for name, option in ((chosen, "--array"), (chosen_keys, "--key-column")):
        if name is not None and name not in names:
            raise CacheError(
                f"{path}: there is no dataset {name}; it holds {first_few(names, 8)}. Fix: name"
                f" one of them with {option}"
            )
    where = f"{path}, dataset {chosen}"
    with refused(where, "cannot be read", "write the file again"), h5py.File(path, "r") as file:
        dataset = file[chosen]
        refuse_bomb(path.stat().st_size, dataset.nbytes)
        checked(where, dataset)
        count, dim = dataset.shape
        dtype = dataset.dtype

    def keys() -> list[str]:
        if key_file is not None:
            return read_keys(key_file, column)
        if chosen_keys is None:
            return row_numbers(0, count)
        key_place = f"{path}, dataset {chosen_keys}"
        with refused(key_place, "cannot be read", "write the file again"):
            with h5py.File(path, "r") as file:
                dataset = file[chosen_keys]
                refuse_bomb(path.stat().st_size, dataset.nbytes)
                values = dataset[()]
        return texts(key_place, _plain(values))

    def read(start: int, stop: int) -> tuple[list[str], np.ndarray]:
        with refused(where, "cannot be read", "write the file again"):
            with h5py.File(path, "r") as file:
                rows = file[chosen][start:stop]
        return keys()[start:stop], rows

    check_count(path, count, len(keys()), key_file or path)
    named_by = ROW_NUMBERS
    if key_file is not None:
        named_by = f"{key_file.name}, column {column}" if column else key_file.name
    elif chosen_keys is not None:
        named_by = f"dataset {chosen_keys}"
    return Vectors(
        path=path,
        form="hdf5",
        count=count,
        dim=dim,
        dtype=dtype.newbyteorder("=").name,
        read=read,
        named_by=named_by,
        key_files=(key_file,) if key_file else (),
    )


def _datasets(file: h5py.File) -> list[str]:
    """Return the names of the datasets that lie in this very file, those in groups by their path.

    Raises ValueError when there are too many.
    """
    names: list[str] = []
    groups = [("", file, 0)]
    while groups:
        prefix, group, depth = groups.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            held = group[name]
            if isinstance(held, h5py.Group) and depth < DEEPEST:
                groups.append((f"{prefix}{name}/", held, depth + 1))
            if isinstance(held, h5py.Dataset) and not (held.external or held.is_virtual):
                names.append(f"{prefix}{name}")
            if len(names) + len(groups) > MOST_DATASETS:
                raise ValueError(f"more than {MOST_DATASETS} datasets")
    return sorted(names)


def _holds_vectors(dataset: h5py.Dataset) -> bool:
    return dataset.ndim == 2 and dataset.dtype.name in FLOATS


def _plain(values: np.ndarray) -> np.ndarray:
    """Return strings of any length, which HDF5 gives as Python's bytes, as an array of bytes."""
    if isinstance(values, np.ndarray) and values.dtype == object and len(values):
        if all(isinstance(value, bytes) for value in values.flat):
            return values.astype(bytes)
    return np.asarray(values)
