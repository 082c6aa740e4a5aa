"""DIME-FM's own feature TSVs, which carry no word of who made them: ``key <tab> base64 of
float32``.

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
from dimefm.errors import CacheError


def open_tsvs(paths: Sequence[Path]) -> list[Vectors]:
    """Open feature TSVs; the first row of the first says the dimension of all.

    Raises CacheError when that is no feature; ``read`` of a file raises it for a row of another
    byte length, which means another dtype or teacher, and for float16, which the file itself does
    not tell.
    """
    dim = _first_dim(paths[0])
    return [
        Vectors(
            path,
            "dime-fm tsv",
            _lines(path),
            dim,
            "float32",
            partial(_read, path, dim),
            "first column",
        )
        for path in paths
    ]


def _first_dim(path: Path) -> int:
    with path.open("rb") as file:
        value = file.readline().rstrip(b"\r\n").partition(b"\t")[2]
    try:
        size = len(base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise CacheError(
            f"{path}, row 0: the second column is not base64 ({error}); is this a feature TSV?"
        ) from error
    if not size or size % 4:
        raise CacheError(
            f"{path}, row 0: {size} bytes, expected a multiple of 4 (float32); is this a feature"
            " TSV?"
        )
    return size // 4


def _lines(path: Path) -> int:
    """Return the number of rows: newlines, and one more for a last row without."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def _read(path: Path, dim: int, start: int, stop: int) -> tuple[list[str], np.ndarray]:
    from dimefm.cache.formats import tsv

    try:
        keys, rows = tsv.read(path, "float32", dim)
    except ValueError as error:
        raise CacheError(
            f"{path}, {error}; every row must be float32[{dim}] as in the first file"
        ) from error
    _refuse_float16(path, rows)
    return keys[start:stop], rows[start:stop]


def _refuse_float16(path: Path, rows: np.ndarray) -> None:
    """Raise CacheError when the bytes make sense as float16 and not as float32: the file itself
    does not say.
    """
    halves = np.ascontiguousarray(rows).view(np.float16)
    if not len(rows) or not (np.abs(halves) < 256).all():
        return
    if 0 < np.median(np.abs(np.nan_to_num(rows))) < 1e-3 < np.median(np.abs(halves)):
        raise CacheError(
            f"{path}: as float32[{rows.shape[1]}] the values vanish, as float16[{halves.shape[1]}]"
            " they do not; features of DIME-FM are float32: write the file anew as float32, or"
            " extract with dimefm"
        )
