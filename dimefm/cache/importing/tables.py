"""Embeddings in a column of a Parquet file, as data-frame tools and vector stores write them.

The column holds lists of floating-point numbers of one length, ``list<float>`` or
``fixed_size_list<float>``. Another column may hold the keys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.cache.importing.vectors import (
    ROW_NUMBERS,
    Vectors,
    only,
    refuse_bomb,
    refused,
    row_numbers,
)
from dimefm.cache.manifest import LARGEST_DIM
from dimefm.errors import CacheError
from dimefm.runtime.text import first_few

KEY_COLUMNS = ("key", "image_path")  # in order of preference
BATCH = 4096  # rows read at once


def open_parquet(path: Path, array: str | None = None, key_column: str | None = None) -> Vectors:
    """Open a Parquet file; its vectors are in the column ``array``, or in the only column of lists.

    The keys are those of ``key_column``; without it ``key``, else ``image_path``, else row numbers.
    Raises CacheError when the file is damaged, a column is not in it, several columns could be the
    vectors, or a row has no vector of the first one's length.
    """
    with refused(path, "not a whole Parquet file", "fetch or write it again"):
        with pq.ParquetFile(path) as file:
            count = file.metadata.num_rows
            schema = file.schema_arrow
    column = array or only(path, [field.name for field in schema if _holds_vectors(field.type)])
    for name, option in ((column, "--array"), (key_column, "--key-column")):
        if name is not None and name not in schema.names:
            raise CacheError(
                f"{path}: there is no column {name}; it has {first_few(schema.names, 8)}. Fix: name"
                f" one of them with {option}"
            )
    column_type = schema.field(column).type
    if not _holds_vectors(column_type):
        raise CacheError(
            f"{path}, column {column}: {str(column_type)[:80]}, expected lists of float16, float32"
            " or float64. Fix: name another column with --array"
        )
    chosen_keys = key_column or next((name for name in KEY_COLUMNS if name in schema.names), None)
    dtype = np.dtype(f"float{column_type.value_type.bit_width}")
    with refused(f"{path}, column {column}", "cannot be read", "write it again"):
        numbers = _count_numbers(path, column, dtype.itemsize)
        dim = _first_dim(path, column)
        if numbers < count * dim:
            raise ValueError(f"{numbers:,} numbers in {count:,} rows, expected {dim} as in row 0")

    def read(start: int, stop: int) -> tuple[list[str], np.ndarray]:
        rows = _rows(path, column, count, dim, dtype)
        keys = row_numbers(0, count) if chosen_keys is None else keys_of_column(path, chosen_keys)
        return keys[start:stop], rows[start:stop]

    return Vectors(
        path=path,
        form="parquet",
        count=count,
        dim=dim,
        dtype=dtype.name,
        read=read,
        named_by=ROW_NUMBERS if chosen_keys is None else f"column {chosen_keys}",
    )


def _holds_vectors(column_type: pa.DataType) -> bool:
    is_list = pa.types.is_list(column_type) or pa.types.is_large_list(column_type)
    if not is_list and not pa.types.is_fixed_size_list(column_type):
        return False
    return pa.types.is_floating(column_type.value_type)


def _count_numbers(path: Path, column: str, number_bytes: int) -> int:
    """Return how many numbers a column has.

    Raises ValueError when they need more memory than a file of its size can honestly ask for. The
    column is scanned first, in little memory: asking for damaged metadata of a column that nobody
    has read ends the process.
    """
    with pq.ParquetFile(path) as file:
        scanned = file.scan_contents([column])
        if scanned != file.metadata.num_rows:
            raise ValueError(f"{scanned:,} rows, expected {file.metadata.num_rows:,}")
        numbers = 0
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            for place in range(metadata.num_columns):
                chunk = metadata.column(place)
                if f"{chunk.path_in_schema}.".startswith(f"{column}."):
                    numbers += chunk.num_values
    refuse_bomb(path.stat().st_size, numbers * number_bytes)
    return numbers


def _first_dim(path: Path, column: str) -> int:
    """Return the length of the first row's vector; raise ValueError when it has none."""
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(1, columns=[column]), None)
    if batch is None or not batch.num_rows:
        raise ValueError("the file has no rows")
    first = batch.column(0)[0]
    dim = len(first) if first.is_valid else 0
    if not 0 < dim <= LARGEST_DIM:
        raise ValueError(f"row 0 has no vector of 1 to {LARGEST_DIM:,} numbers")
    return dim


def _rows(path: Path, column: str, count: int, dim: int, dtype: np.dtype) -> np.ndarray:
    """Return all vectors [count, dim] of a column."""
    with refused(f"{path}, column {column}", "cannot be read", "write it again"):
        rows = np.empty((count, dim), dtype)
        first = 0  # number of the batch's first row
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=[column]):
                stop = first + batch.num_rows
                rows[first:stop] = _block(batch.column(0), first, dim, dtype)
                first = stop
        if first != count:
            raise ValueError(f"{first} rows, expected {count}")
        return rows


def _block(lists: pa.Array, first: int, dim: int, dtype: np.dtype) -> np.ndarray:
    """Return a batch of lists as an array [n, dim]; ``first`` is the number of its first row.

    A number that is null becomes NaN, so that its row is quarantined.
    """
    if isinstance(lists, pa.FixedSizeListArray):
        lengths = np.full(len(lists), lists.type.list_size)
    else:
        lengths = np.asarray(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    lengths = np.where(np.asarray(lists.is_valid()), lengths, 0)
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"row {first + place} has {int(lengths[place])} numbers, expected {dim} as in row 0"
        )
    numbers = lists.flatten()
    if numbers.null_count:
        numbers = numbers.cast(pa.float32()) if dtype == np.float16 else numbers
        numbers = numbers.fill_null(float("nan"))
    array = numbers.to_numpy(zero_copy_only=False)
    return np.asarray(array, dtype=dtype).reshape(-1, dim)


def keys_of_column(path: Path, column: str) -> list[str]:
    """Return the values of a column as keys; raise CacheError naming a row without a value."""
    with refused(f"{path}, column {column}", "cannot be read", "write it again"):
        with pq.ParquetFile(path) as file:
            values = file.read([column]).column(column).to_pylist()
    keys = []
    for row, value in enumerate(values):
        if value is None:
            raise CacheError(
                f"{path}, row {row}: {column} is empty, so there is no key. Fix: choose another"
                " --key-column"
            )
        keys.append(str(value))
    return keys
