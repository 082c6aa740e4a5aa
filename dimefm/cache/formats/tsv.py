"""TSV as DIME-FM reads it: ``key <tab> base64(row) <newline>`` with a decimal ``.lineidx``.

Rows are little-endian float32 by default, the only thing that DIME-FM's released loader
understands; float16 and int8 are smaller and readable here only. Source: DIME-FM (ICCV 2023),
released Training/datasets/tsv_file.py.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dimefm.cache.formats import BLOCK
from dimefm.errors import CacheError

SUFFIXES = (".lineidx", ".tsv")
DEFAULT_DTYPE = "float32"
LONGEST_KEY = 65_535  # bytes


def write(files: dict[str, BinaryIO], keys: list[str], rows: np.ndarray) -> int | None:
    """Write one shard; raise CacheError for a key with a tab or newline."""
    offset = 0
    little = rows.dtype.newbyteorder("<")
    for start in range(0, len(keys), BLOCK):
        part = np.ascontiguousarray(rows[start : start + BLOCK], dtype=little)
        for number, (key, row) in enumerate(
            zip(keys[start : start + BLOCK], part, strict=True), start
        ):
            raw = key.encode("utf-8")
            if b"\t" in raw or b"\n" in raw or len(raw) > LONGEST_KEY:
                raise CacheError(
                    f"row {number}: the key {key[:64]!r} cannot stand in a TSV; use --format hdf5"
                    " or parquet"
                )
            files[".lineidx"].write(b"%d\n" % offset)
            offset += files[".tsv"].write(raw + b"\t" + base64.b64encode(row.data) + b"\n")
    return None


def blocks(
    path: Path, shape: tuple[int, int], dtype: str
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield (keys, rows) of a shard, at most BLOCK rows each; the line index must fit the lines."""
    index = path.with_name(path.name.removesuffix(SUFFIXES[-1]) + SUFFIXES[0])
    with path.open("rb") as file, index.open("rb") as offsets:
        for start in range(0, shape[0], BLOCK):
            numbers = range(start, min(start + BLOCK, shape[0]))
            yield _block(file, offsets, numbers, shape[1], np.dtype(dtype))
        if file.read(1) or offsets.read(1):
            raise ValueError(f"more than the {shape[0]} rows expected")


def _block(
    file: BinaryIO, offsets: BinaryIO, numbers: range, dim: int, dtype: np.dtype
) -> tuple[list[str], np.ndarray]:
    keys, rows = [], np.empty((len(numbers), dim), dtype=dtype)
    for place, number in enumerate(numbers):
        begin, stated = file.tell(), offsets.readline(24).strip()
        if stated != b"%d" % begin:
            raise ValueError(
                f"row {number}: its index says byte {stated.decode('ascii', 'replace')!r}, it"
                f" begins at {begin}"
            )
        key, row = parse(file, number, dim, dtype)
        keys.append(key)
        rows[place] = row
    return keys, rows


def parse(file: BinaryIO, number: int, dim: int, dtype: np.dtype) -> tuple[str, np.ndarray]:
    """Return (key, row) of the next line; raise ValueError naming row ``number`` when it is not a
    row of ``dtype[dim]``.
    """
    line = file.readline(LONGEST_KEY + 2 * dim * dtype.itemsize + 16)
    if not line:
        raise ValueError(f"row {number}: missing, the file ends before it")
    key, tab, value = line.removesuffix(b"\n").removesuffix(b"\r").partition(b"\t")
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"row {number}: not base64 ({error})") from error
    if not tab or len(raw) != dim * dtype.itemsize:
        raise ValueError(
            f"row {number}: {len(raw)} bytes, expected {dim * dtype.itemsize} for {dtype}[{dim}]"
        )
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"row {number}: the key is not UTF-8 ({error.reason})") from error
    return name, np.frombuffer(raw, dtype=dtype.newbyteorder("<"))


def lines(path: Path, dim: int, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (key, row) of every line of a feature TSV that has no manifest; raise ValueError naming
    a wrong row.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for number in itertools.count():
            if file.tell() == size:
                return
            yield parse(file, number, dim, np.dtype(dtype))


def read(path: Path, dtype: str, dim: int) -> tuple[list[str], np.ndarray]:
    """Return (keys, rows [n, dim]) of a feature TSV that has no manifest; raise ValueError naming a
    wrong row.
    """
    found = list(lines(path, dim, dtype))
    return [key for key, _ in found], np.array([row for _, row in found], dtype=dtype).reshape(
        len(found), dim
    )
