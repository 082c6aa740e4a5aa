"""TSV as DIME-FM reads it: ``key <tab> base64(row) <newline>`` with a decimal ``.lineidx``.

Rows are little-endian float32 by default, the only thing that DIME-FM's released loader understands; float16 is half the
size and readable here only. Source: DIME-FM (ICCV 2023), released Training/datasets/tsv_file.py.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import numpy as np

from dimefm.errors import CacheError

SUFFIXES = (".lineidx", ".tsv")
DEFAULT_DTYPE = "float32"


def write(paths: dict[str, Path], keys: list[str], rows: np.ndarray) -> None:
    """Write one shard; ``rows`` is [len(keys), dim] in the dtype to store. Raises CacheError for a key with a tab."""
    little = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<")))
    offset = 0
    with paths[".tsv"].open("wb") as file, paths[".lineidx"].open("w") as index:
        for number, (key, row) in enumerate(zip(keys, little, strict=True)):
            if "\t" in key or "\n" in key:
                raise CacheError(f"row {number}: the key {key!r} cannot stand in a TSV; use --format hdf5 or parquet")
            line = key.encode("utf-8") + b"\t" + base64.b64encode(row.tobytes()) + b"\n"
            index.write(f"{offset}\n")
            offset += file.write(line)


def read(path: Path, dtype: str, dim: int) -> tuple[list[str], np.ndarray]:
    """Return (keys, rows [n, dim]); raise ValueError naming the row whose length or encoding is wrong."""
    keys, rows = [], []
    expected = dim * np.dtype(dtype).itemsize
    with path.open("rb") as file:
        for number, line in enumerate(file):
            key, _, value = line.rstrip(b"\n").partition(b"\t")
            try:
                raw = base64.b64decode(value, validate=True)
            except binascii.Error as error:
                raise ValueError(f"row {number}: not base64 ({error})") from error
            if len(raw) != expected:
                raise ValueError(f"row {number}: {len(raw)} bytes, expected {expected} for {dtype}[{dim}]")
            keys.append(key.decode("utf-8"))
            rows.append(np.frombuffer(raw, dtype=np.dtype(dtype).newbyteorder("<")))
    return keys, np.array(rows, dtype=dtype).reshape(len(keys), dim)


def map(path: Path, shape: tuple[int, int], dtype: str) -> np.ndarray | None:
    """Return None: base64 cannot be mapped, the reader makes a flat copy."""
    return None
