"""The one formula: total = sum over terms of weight x term(student, teacher)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from dimefm.errors import RecipeError
from dimefm.losses._features import Features, resolve


@dataclass(frozen=True)
class Weighted:
    """One term of a recipe: its name, weight and options."""

    name: str
    weight: float
    options: dict = field(default_factory=dict)


class Objective:
    """A weighted sum of terms, checked when it is built.

    ``given`` says what the data offer (``"teacher"``, ``"pairs"``; see :func:`~dimefm.losses.needs`). Raises RecipeError
    for an unknown term or option, a weight of 0 (a switch that silently does nothing), and a term that needs what the
    data lack.
    """

    def __init__(self, terms: list[Weighted], given: frozenset[str] = frozenset({"teacher"})):
        if not terms:
            raise RecipeError("no loss is given; name at least one under [losses], or use --use-pvl-loss")
        self.terms = [(term, resolve(term.name, term.options)) for term in terms]
        for term, function in self.terms:
            if not (term.weight > 0 and math.isfinite(term.weight)):
                raise RecipeError(
                    f"loss '{term.name}' has weight {term.weight:g} and would do nothing; give it a positive weight"
                )
            lacking = " and ".join(sorted(function.needs - given))
            if lacking:
                raise RecipeError(
                    f"loss '{term.name}' needs {lacking}, which these sources do not have; leave it out, or train on "
                    f"sources with {lacking}"
                )

    def __call__(self, student: Features, teacher: Features | None) -> dict[str, Tensor]:
        """Return each term's unweighted value and their weighted ``"total"``, all scalars."""
        values = {term.name: function(student, teacher, **term.options) for term, function in self.terms}
        total = sum(term.weight * values[term.name] for term, _ in self.terms)
        return {"total": total, **values}
