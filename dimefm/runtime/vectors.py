"""Rows of numbers as directions: brought to unit length, and checked for having one."""

from __future__ import annotations

import numpy as np


def unit_rows(rows: np.ndarray, *, eps: float) -> np.ndarray:
    """Return ``rows`` [n, D] divided by their L2 lengths, in their own precision.

    A length below ``eps`` counts as ``eps``, so a row of zeros stays zeros. With ``eps=0`` every
    row must have a length: see :func:`row_without_direction`.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, eps)


def row_without_direction(rows: np.ndarray) -> tuple[int, float] | None:
    """Return the index and the length of the first of ``rows`` [n, D] whose length is 0 or not
    finite, or None where every row has a direction."""
    lengths = np.linalg.norm(rows, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    unusable = np.flatnonzero(~usable)
    if not len(unusable):
        return None
    first = int(unusable[0])
    return first, float(lengths[first])
