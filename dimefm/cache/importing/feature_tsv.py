"""DIME-FM's feature TSVs: lines of ``key <tab> base64 of float32``, without a manifest.

Source: DIME-FM (ICCV 2023), released Training/datasets/tsv_file.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dimefm.cache.importing.vectors import Vectors
from dimefm.cache.manifest import LARGEST_DIM
from dimefm.errors import CacheError

LONGEST_KEY = 65_535  # bytes
FLOAT_BYTES = 4
HUGE = 1e6  # beyond any number of an embedding
SENSIBLE = 1e4  # largest number of a file that is taken for float64
TINY = 1e-6
SOME = 0.1  # share of huge numbers, of which halves of float64 have a fifth


def open_tsvs(paths: Sequence[Path]) -> list[Vectors]:
    """Open feature TSVs; the first row of the first file gives the dimension of all.

    Raises CacheError when that row is no feature. ``read`` of a file raises it for a row of another
    byte length, which means another dtype or teacher, and for float16, which the file does not
    state.
    """
    dim = _first_dim(paths[0])
    files = []
    for path in paths:
        vectors = Vectors(
            path=path,
            form="dime-fm tsv",
            count=_lines(path),
            dim=dim,
            dtype="float32",
            read=partial(_read, path, dim),
            named_by="first column",
        )
        files.append(vectors)
    return files


def _first_dim(path: Path) -> int:
    """Return the number of float32 values in the first row of a file."""
    longest = LONGEST_KEY + 2 * LARGEST_DIM * FLOAT_BYTES
    with path.open("rb") as file:
        line = file.readline(longest).rstrip(b"\r\n")
    if len(line) >= longest:
        raise CacheError(
            f"{path}, row 0: more than {longest:,} bytes, so it is no feature of up to"
            f" {LARGEST_DIM:,} numbers. Fix: name a feature TSV"
        )
    _, _, value = line.partition(b"\t")
    try:
        size = len(base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise CacheError(
            f"{path}, row 0: the second column is not base64 ({error}). Fix: name a feature TSV"
        ) from error
    if not size or size % 4:
        raise CacheError(
            f"{path}, row 0: {size} bytes, expected a multiple of 4 (float32). Fix: name a"
            " feature TSV"
        )
    return size // 4


def _lines(path: Path) -> int:
    """Return the number of lines; the last may lack its newline."""
    count = 0
    last = b"\n"
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 24)
            if not block:
                break
            count += block.count(b"\n")
            last = block[-1:]
    if last != b"\n":
        count += 1
    return count


def _read(path: Path, dim: int, start: int, stop: int) -> tuple[list[str], np.ndarray]:
    from dimefm.cache.formats import tsv

    try:
        keys, rows = tsv.read(path, "float32", dim)
    except ValueError as error:
        raise CacheError(
            f"{path}, {error}. Fix: write every row as float32[{dim}], as in the first file"
        ) from error
    _refuse_float16(path, rows)
    _refuse_float64(path, rows)
    return keys[start:stop], rows[start:stop]


def _refuse_float64(path: Path, rows: np.ndarray) -> None:
    """Raise CacheError when the bytes make sense as float64 and not as float32.

    The lower half of a float64 is any number at all as float32, and many of these are huge.
    """
    if not len(rows) or rows.shape[1] % 2:
        return
    doubles = np.ascontiguousarray(rows).view(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        largest_double = np.abs(doubles).max()
        is_huge = ~(np.abs(rows) < HUGE)
    if TINY < largest_double < SENSIBLE and is_huge.mean() > SOME:
        raise CacheError(
            f"{path}: as float32[{rows.shape[1]}] many values are beyond {HUGE:g}, as"
            f" float64[{doubles.shape[1]}] none is; features of DIME-FM are float32. Fix: write the"
            " file again as float32"
        )


def _refuse_float16(path: Path, rows: np.ndarray) -> None:
    """Raise CacheError when the bytes make sense as float16 and not as float32.

    The file itself does not state its dtype.
    """
    halves = np.ascontiguousarray(rows).view(np.float16)
    magnitudes = np.abs(halves)
    if not len(rows) or not (magnitudes < 256).all():
        return
    typical_single = np.median(np.abs(np.nan_to_num(rows)))
    typical_half = np.median(magnitudes)
    if 0 < typical_single < 1e-3 < typical_half:
        raise CacheError(
            f"{path}: as float32[{rows.shape[1]}] the values vanish, as float16[{halves.shape[1]}]"
            " they do not; features of DIME-FM are float32. Fix: write the file again as float32,"
            " or extract with dimefm"
        )
