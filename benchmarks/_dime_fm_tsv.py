"""How DIME-FM's released loader reads one feature row, written anew from a description of what it
does, not from its code.

The facts, found by running DIME-FM (ICCV 2023), released Training/datasets/tsv_file.py:56-72 and
184-189: the composite of TSV files builds a new reader for every row. Each reader opens the TSV as
text, reads the whole ``.lineidx`` beside it and parses every line to an int, seeks to the row's
offset and reads one line; the value is base64 of little-endian float32. When the reader is
destroyed it closes the file and runs ``gc.collect()``. Training does this twice a sample, for the
image and for its feature; here it is timed once. What a collection costs grows with the objects
alive: less here than beside torch.
"""

from __future__ import annotations

import base64
import gc
from pathlib import Path

import numpy as np


class _Reader:
    """Reader of one TSV, as short-lived as there."""

    def __init__(self, path: Path, collect: bool):
        self._collect = collect
        self._file = path.open(encoding="utf-8")
        with path.with_suffix(".lineidx").open() as index:
            self._offsets = [int(line.strip()) for line in index]

    def line(self, row: int) -> list[str]:
        """Return the columns of a row."""
        self._file.seek(self._offsets[row])
        return [column.strip() for column in self._file.readline().split("\t")]

    def __del__(self):
        self._file.close()
        if self._collect:
            gc.collect()


class Composite:
    """The access pattern over one TSV; ``collect=False`` leaves out the call of
    ``gc.collect()``.
    """

    def __init__(self, path: Path, collect: bool = True):
        self.path, self.collect = path, collect

    def __getitem__(self, row: int) -> np.ndarray:
        """Return a row, float32 [dim]."""
        return np.frombuffer(self.value(row), dtype=np.float32)

    def value(self, row: int) -> bytes:
        """Return what stands in a row: the bytes of a feature, or of an image's file."""
        return base64.b64decode(_Reader(self.path, self.collect).line(row)[1])
