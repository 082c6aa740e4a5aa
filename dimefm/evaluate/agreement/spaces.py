"""Whether two encoders embed into one space, and how close their embeddings are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dimefm.cache import EncoderCard
from dimefm.evaluate.agreement.measures import cosines, linear_cka

COSINE = "cosine"
CKA = "linear CKA"
LOW = 5
"""Percentile of the cosines that is stated beside their mean."""


@dataclass(frozen=True)
class Closeness:
    """How close the embeddings of one tower are.

    ``measure`` is ``"cosine"`` or ``"linear CKA"``, ``mean`` its value (of CKA the one value, None
    where it is undefined), ``low`` the 5th percentile of the cosines. ``rows`` were compared.
    """

    measure: str
    mean: float | None
    low: float | None
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def why_one_space(student: EncoderCard, teacher: EncoderCard) -> str:
    """Return why the two encoders embed into one space, "" where nothing says so.

    An equal number of dimensions alone says nothing. A run that learned one tower of a teacher says
    whose other tower goes with it.
    """
    if student.dim != teacher.dim:
        return ""
    identity = teacher.identity()
    if student.identity() == identity:
        return "both are one encoder"
    for tower, shared in student.shared_towers.items():
        if shared == identity:
            return f"the student has the {tower} tower of the teacher"
    for shared in student.shared_towers.values():
        if shared in teacher.shared_towers.values():
            return "both have a tower of the same encoder"
    return ""


def closeness(student: np.ndarray, teacher: np.ndarray, one_space: bool) -> Closeness:
    """Compare embeddings [n, D] and [n, E] of the same rows: by cosine in one space, else CKA."""
    if not one_space:
        return Closeness(CKA, linear_cka(student, teacher), None, len(student))
    of_rows = cosines(student, teacher)
    low = float(np.percentile(of_rows, LOW))
    return Closeness(COSINE, float(of_rows.mean()), low, len(of_rows))
