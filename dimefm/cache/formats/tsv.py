"""TSV as DIME-FM reads it: ``key <tab> base64(row) <newline>`` with a decimal ``.lineidx``.

Rows are little-endian float32 by default, the only dtype that DIME-FM's released loader reads;
float16 and int8 are smaller, and only dimefm reads them. Source: DIME-FM (ICCV 2023),
released Training/datasets/tsv_file.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dimefm.cache.formats import BLOCK, Block
from dimefm.errors import CacheError

SUFFIXES = (".lineidx", ".tsv")
DEFAULT_DTYPE = "float32"
LONGEST_KEY = 65_535  # bytes


def write(files: dict[str, BinaryIO], keys: list[str], rows: np.ndarray) -> int | None:
    """Write one shard; raise CacheError for a key with a tab or newline."""
    index = files[".lineidx"]
    file = files[".tsv"]
    offset = 0
    little = rows.dtype.newbyteorder("<")
    for start in range(0, len(keys), BLOCK):
        block_keys = keys[start : start + BLOCK]
        block = np.ascontiguousarray(rows[start : start + BLOCK], dtype=little)
        for number, key in enumerate(block_keys, start):
            name = _encoded(key, number)
            row = block[number - start]
            value = base64.b64encode(row.data)
            line = b"%b\t%b\n" % (name, value)
            index.write(b"%d\n" % offset)
            offset += file.write(line)
    return None


def _encoded(key: str, number: int) -> bytes:
    """Return the UTF-8 of the key of row ``number``; raise CacheError when it cannot be a field."""
    name = key.encode("utf-8")
    has_separator = b"\t" in name or b"\n" in name
    if has_separator or len(name) > LONGEST_KEY:
        raise CacheError(
            f"row {number}: the key {key[:64]!r} cannot stand in a TSV. Fix: use --format hdf5"
            " or parquet"
        )
    return name


def blocks(
    path: Path,
    shape: tuple[int, int],
    dtype: str,
) -> Iterator[Block]:
    """Yield (keys, rows) of a shard, at most BLOCK rows each; the line index must fit the lines."""
    count, dim = shape
    stem = path.name.removesuffix(SUFFIXES[-1])
    index_path = path.with_name(stem + SUFFIXES[0])
    with path.open("rb") as file, index_path.open("rb") as index:
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            numbers = range(start, stop)
            yield _block(file, index, numbers, dim, np.dtype(dtype))
        if file.read(1) or index.read(1):
            raise ValueError(f"more than the {count} rows expected")


def _block(
    file: BinaryIO,
    index: BinaryIO,
    numbers: range,
    dim: int,
    dtype: np.dtype,
) -> Block:
    """Return (keys, rows) of the next lines, which are the rows ``numbers``."""
    keys = []
    rows = np.empty((len(numbers), dim), dtype=dtype)
    for place, number in enumerate(numbers):
        begin = file.tell()
        stated = index.readline(24).strip()
        if stated != b"%d" % begin:
            shown = stated.decode("ascii", "replace")
            raise ValueError(f"row {number}: its index says byte {shown!r}, it begins at {begin}")
        key, rows[place] = parse(file, number, dim, dtype)
        keys.append(key)
    return keys, rows


def parse(file: BinaryIO, number: int, dim: int, dtype: np.dtype) -> tuple[str, np.ndarray]:
    """Return (key, row) of the next line.

    Raises ValueError naming row ``number`` when the line is not a row of ``dtype[dim]``.
    """
    row_bytes = dim * dtype.itemsize
    longest_line = LONGEST_KEY + 2 * row_bytes + 16
    line = file.readline(longest_line)
    if not line:
        raise ValueError(f"row {number}: missing, the file ends before it")
    line = line.removesuffix(b"\n")
    line = line.removesuffix(b"\r")
    key, tab, value = line.partition(b"\t")
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"row {number}: not base64 ({error})") from error
    if not tab or len(raw) != row_bytes:
        raise ValueError(f"row {number}: {len(raw)} bytes, expected {row_bytes} for {dtype}[{dim}]")
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"row {number}: the key is not UTF-8 ({error.reason})") from error
    row = np.frombuffer(raw, dtype=dtype.newbyteorder("<"))
    return name, row


def lines(path: Path, dim: int, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (key, row) of every line of a feature TSV that has no manifest.

    Raises ValueError naming a wrong row.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        number = 0
        while file.tell() != size:
            yield parse(file, number, dim, np.dtype(dtype))
            number += 1


def read(path: Path, dtype: str, dim: int) -> Block:
    """Return (keys, rows [n, dim]) of a feature TSV that has no manifest.

    Raises ValueError naming a wrong row.
    """
    keys = []
    rows = []
    for key, row in lines(path, dim, dtype):
        keys.append(key)
        rows.append(row)
    array = np.array(rows, dtype=dtype)
    return keys, array.reshape(len(rows), dim)
