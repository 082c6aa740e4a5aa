"""How much of its direction a row loses in a coarser dtype, and which rows lose too much.

A row's loss is measured as its cosine with its stored form. One row of huge numbers widens the int8
code until all others have the same few codes, and numbers below float16's smallest lose their
digits: both would pass unnoticed.

The limit is LEAST_COSINE. Rows of a real CLIP (OpenAI's ViT-B/32, 3,346 images and sentences) keep
0.99997 as int8 at least, and 0.9999999 as float16; ``docs/RESULTS.md`` has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dimefm.cache.int8 import AffineQuantizer

LEAST_COSINE = 0.99
NAMED = 3  # rows that a message names
LONGEST_NAME = 60  # characters of a source in a message


def stored_cosines(rows: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Return the cosine of each of ``rows`` [n, D] with its stored form [n, D], float64 [n].

    It is 0 where only one of the two has a length, and 1 where neither has.
    """
    exact = rows.astype(np.float64)
    kept = stored.astype(np.float64)
    exact_lengths = np.linalg.norm(exact, axis=1)
    kept_lengths = np.linalg.norm(kept, axis=1)
    products = np.einsum("nd,nd->n", exact, kept)
    lengths = exact_lengths * kept_lengths
    cosines = np.divide(products, lengths, out=np.zeros(len(rows)), where=lengths > 0)
    cosines[(exact_lengths == 0) & (kept_lengths == 0)] = 1
    return cosines


def least_length(code: AffineQuantizer) -> float:
    """Return the length from which a row inside ``code`` surely keeps LEAST_COSINE.

    A stored number is off by half a step at most. So a row's error is no longer than half the
    length of the steps, and the sine of its angle no larger than error / length.
    """
    longest_error = float(np.linalg.norm(code.scale.astype(np.float64))) / 2
    largest_sine = float(np.sqrt(1 - LEAST_COSINE**2))
    return longest_error / largest_sine


def first_lossy(rows: np.ndarray, code: AffineQuantizer) -> tuple[int, float] | None:
    """Return (place, cosine) of the first of ``rows`` [n, D] that loses too much in ``code``."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not len(rows) or lengths.min() >= least_length(code):
        return None
    cosines = stored_cosines(rows, code.decode(code.encode(rows)))
    lossy = np.flatnonzero(~(cosines >= LEAST_COSINE))
    if not len(lossy):
        return None
    first = int(lossy[0])
    return first, float(cosines[first])


@dataclass(frozen=True)
class LossyRow:
    """A row that loses too much: its source, its number there, its cosine with its stored form."""

    source: str
    row: int
    cosine: float

    def __str__(self) -> str:
        return f"{_place(self.source, self.row)} ({self.cosine:.3f})"


@dataclass
class LossCount:
    """Counts the rows whose cosine is below LEAST_COSINE, and keeps the first few by name.

    ``longest`` is the longest row of all, as (length, source, row): an outlier is most often it.
    """

    rows: int = 0
    lossy: int = 0
    lowest: float = 1.0
    first: list[LossyRow] = field(default_factory=list)
    longest: tuple[float, str, int] = (0.0, "", 0)

    def add(
        self, rows: np.ndarray, stored: np.ndarray, source: str, source_rows: np.ndarray
    ) -> None:
        """Count ``rows`` [n, D], which are the rows ``source_rows`` [n] of ``source``."""
        if not len(rows):
            return
        cosines = stored_cosines(rows, stored)
        self.rows += len(rows)
        self.lowest = min(self.lowest, float(cosines.min()))
        places = np.flatnonzero(~(cosines >= LEAST_COSINE))
        self.lossy += len(places)
        for place in places[: NAMED - len(self.first)].tolist():
            lossy = LossyRow(source, int(source_rows[place]), float(cosines[place]))
            self.first.append(lossy)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        place = int(lengths.argmax())
        length = float(lengths[place])
        if length > self.longest[0]:
            self.longest = (length, source, int(source_rows[place]))

    def describe(self, dtype: str) -> str:
        """Return which rows lose too much as ``dtype``, and which row is the longest."""
        names = ", ".join(str(row) for row in self.first)
        if self.lossy > len(self.first):
            names += f" and {self.lossy - len(self.first):,} more"
        length, source, row = self.longest
        return (
            f"as {dtype}, {self.lossy:,} of {self.rows:,} rows have a cosine below {LEAST_COSINE}"
            f" with themselves: {names}; the longest row is {_place(source, row)}, length"
            f" {length:.3g}"
        )


def _place(source: str, row: int) -> str:
    if len(source) > LONGEST_NAME:
        source = "..." + source[-LONGEST_NAME:]
    return f"{source} row {row}"
