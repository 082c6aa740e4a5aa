"""Parquet: columns ``key: string`` and ``row: fixed_size_list<float, dim>``, zstd.

The exchange form: any data-frame tool reads it. Random rows come from a flat copy that the reader makes once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".parquet",)
DEFAULT_DTYPE = "float16"
GROUP = 16_384


def write(paths: dict[str, Path], keys: list[str], rows: np.ndarray) -> None:
    """Write one shard; ``rows`` is [len(keys), dim] in the dtype to store."""
    values = pa.array(np.ascontiguousarray(rows).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    table = pa.table({"key": pa.array(keys, pa.string()), "row": column})
    pq.write_table(table, paths[".parquet"], compression="zstd", row_group_size=GROUP, use_dictionary=False)


def read(path: Path, dtype: str, dim: int) -> tuple[list[str], np.ndarray]:
    """Return (keys, rows [n, dim])."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error).splitlines()[0]) from error
    values = table.column("row").combine_chunks().flatten()
    rows = np.asarray(values.to_numpy(zero_copy_only=False), dtype=dtype).reshape(-1, dim)
    return table.column("key").to_pylist(), rows


def map(path: Path, shape: tuple[int, int], dtype: str) -> np.ndarray | None:
    """Return None: Parquet pages cannot be mapped, the reader makes a flat copy."""
    return None
