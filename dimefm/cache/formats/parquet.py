"""Parquet: columns ``key: string`` and ``row: fixed_size_list<float, dim>``, byte-stream-split and
zstd.

The exchange form: any data-frame tool reads the vectors as lists of numbers. Random rows come from
a flat copy that the reader makes once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.cache.formats import BLOCK

SUFFIXES = (".parquet",)
DEFAULT_DTYPE = "float16"
TYPES = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8()}


def write(files: dict[str, BinaryIO], keys: list[str], rows: np.ndarray) -> int | None:
    """Write one shard; ``rows`` is [len(keys), dim] in the dtype to store."""
    schema = pa.schema(
        [("key", pa.string()), ("row", pa.list_(TYPES[rows.dtype.name], rows.shape[1]))]
    )
    splits = {"row.list.element": "BYTE_STREAM_SPLIT"} if rows.dtype.kind == "f" else None
    settings = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "write_statistics": False,
    }
    with pq.ParquetWriter(files[".parquet"], schema, column_encoding=splits, **settings) as writer:
        for start in range(0, len(rows), BLOCK):
            part = np.ascontiguousarray(rows[start : start + BLOCK])
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), rows.shape[1])
            writer.write_table(
                pa.table(
                    [pa.array(keys[start : start + BLOCK], pa.string()), column], schema=schema
                ),
                BLOCK,
            )
    return None


def blocks(
    path: Path, shape: tuple[int, int], dtype: str
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield (keys, rows) of a shard, a row group each."""
    try:
        with pq.ParquetFile(path) as file:
            _check(file, shape, dtype)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["key", "row"])
                values = table.column("row").combine_chunks().flatten()
                if (
                    table.column("key").null_count
                    or table.column("row").null_count
                    or values.null_count
                ):
                    raise ValueError(f"row group {group} holds nulls")
                rows = np.asarray(values.to_numpy(zero_copy_only=False), dtype=dtype)
                yield table.column("key").to_pylist(), rows.reshape(-1, shape[1])
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _check(file: pq.ParquetFile, shape: tuple[int, int], dtype: str) -> None:
    found, expected = file.schema_arrow, pa.list_(TYPES[dtype], shape[1])
    types = {name: found.field(name).type for name in ("key", "row") if name in found.names}
    if types.get("row") != expected or types.get("key") != pa.string():
        raise ValueError(
            f"columns {', '.join(f'{n}: {t}' for n, t in types.items())}, expected key: string,"
            f" row: {expected}"
        )
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    if sum(group.num_rows for group in groups) != shape[0]:
        raise ValueError(f"{sum(group.num_rows for group in groups)} rows, expected {shape[0]}")
    largest = max((group.num_rows for group in groups), default=0)
    if largest > BLOCK:
        raise ValueError(f"a row group of {largest} rows, expected at most {BLOCK}")
