"""Convert between the row numbers of a source and those of a shard that skips its bad rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SkipIndex:
    """Row numbers before and after some rows are skipped.

    A source with rows 0 1 2 3 4 whose rows 1 and 3 are skipped has stored rows 0 1 2: these are
    the source rows 0, 2 and 4.

    ``skipped`` holds the skipped source rows, int64 [k], ascending and distinct.
    """

    skipped: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[int]) -> SkipIndex:
        """Return the index that skips ``rows``, ascending and distinct source row numbers."""
        return cls(np.array(rows, dtype=np.int64))

    def to_source(self, stored: np.ndarray) -> np.ndarray:
        """Return the source rows, int64 [n], of the ``stored`` rows [n]."""
        skipped_before = np.searchsorted(self._stored_before, stored, side="right")
        return stored + skipped_before

    def to_stored(self, source: np.ndarray) -> np.ndarray:
        """Return the stored rows, int64 [n], of the ``source`` rows [n], none of them skipped."""
        skipped_before = np.searchsorted(self.skipped, source)
        return source - skipped_before

    @functools.cached_property
    def _stored_before(self) -> np.ndarray:
        """How many stored rows come before each skipped row, int64 [k]."""
        return self.skipped - np.arange(len(self.skipped))
