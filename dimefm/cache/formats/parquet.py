"""Parquet: columns ``key: string`` and ``row: fixed_size_list<float, dim>``.

Compressed by byte-stream-split and zstd. This is the format for exchange: any data-frame tool reads
the vectors as lists of numbers. DuckDB reads no float16, so float32 is the default; it is a few
percent larger where the numbers were float16. Random rows come from a flat copy that the reader
makes once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.cache.formats import BLOCK, Block

SUFFIXES = (".parquet",)
DEFAULT_DTYPE = "float32"
WIDENED = {"float16": "float32"}
TYPES = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8()}
SETTINGS = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": False,
}


def write(files: dict[str, BinaryIO], keys: list[str], rows: np.ndarray) -> int | None:
    """Write one shard; ``rows`` is [len(keys), dim] in the dtype to store."""
    dim = rows.shape[1]
    row_type = pa.list_(TYPES[rows.dtype.name], dim)
    schema = pa.schema([("key", pa.string()), ("row", row_type)])
    encoding = None
    if rows.dtype.kind == "f":
        encoding = {"row.list.element": "BYTE_STREAM_SPLIT"}
    file = files[".parquet"]
    with pq.ParquetWriter(file, schema, column_encoding=encoding, **SETTINGS) as writer:
        for start in range(0, len(rows), BLOCK):
            stop = start + BLOCK
            block = np.ascontiguousarray(rows[start:stop])
            block_keys = keys[start:stop]
            numbers = pa.array(block.reshape(-1))
            key_column = pa.array(block_keys, pa.string())
            row_column = pa.FixedSizeListArray.from_arrays(numbers, dim)
            table = pa.table([key_column, row_column], schema=schema)
            writer.write_table(table, BLOCK)
    return None


def blocks(
    path: Path,
    shape: tuple[int, int],
    dtype: str,
) -> Iterator[Block]:
    """Yield (keys, rows) of a shard, a row group each."""
    dim = shape[1]
    try:
        with pq.ParquetFile(path) as file:
            _check(file, shape, dtype)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["key", "row"])
                keys = table.column("key")
                row_column = table.column("row")
                numbers = row_column.combine_chunks().flatten()
                if keys.null_count or row_column.null_count or numbers.null_count:
                    raise ValueError(f"row group {group} holds nulls")
                array = numbers.to_numpy(zero_copy_only=False)
                rows = np.asarray(array, dtype=dtype)
                yield keys.to_pylist(), rows.reshape(-1, dim)
    except MemoryError:  # Arrow's own is an ArrowException, too
        raise
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _check(file: pq.ParquetFile, shape: tuple[int, int], dtype: str) -> None:
    """Raise ValueError when the columns, the rows or the row groups are not as expected."""
    schema = file.schema_arrow
    metadata = file.metadata
    count, dim = shape
    row_type = pa.list_(TYPES[dtype], dim)
    types = {}
    for name in ("key", "row"):
        if name in schema.names:
            types[name] = schema.field(name).type
    if types.get("row") != row_type or types.get("key") != pa.string():
        columns = [f"{name}: {column_type}" for name, column_type in types.items()]
        raise ValueError(f"columns {', '.join(columns)}, expected key: string, row: {row_type}")
    sizes = []
    for group in range(file.num_row_groups):
        sizes.append(metadata.row_group(group).num_rows)
    total = sum(sizes)
    if total != count:
        raise ValueError(f"{total} rows, expected {count}")
    largest = max(sizes, default=0)
    if largest > BLOCK:
        raise ValueError(f"a row group of {largest} rows, expected at most {BLOCK}")
