"""The one formula: total = sum over terms of weight x term(student, teacher)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dimefm.errors import RecipeError, did_you_mean
from dimefm.losses._features import Features
from dimefm.losses._modules import FeatureDims, loss_modules
from dimefm.losses._needs import Need
from dimefm.losses._terms import Term, resolve

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LossConfig:
    """One term of a recipe: its name, weight and options.

    With a ``schedule`` "linear" or "cosine" (half a wave) the weight goes from ``weight`` at the
    first step to ``end`` at the last.
    """

    name: str
    weight: float
    options: dict = field(default_factory=dict)
    schedule: str = "constant"
    end: float | None = None

    @classmethod
    def from_settings(cls, name: str, settings: Mapping) -> LossConfig:
        """Return the term ``name`` with its settings in a recipe.

        These are weight, schedule, end, and the term's own options.
        """
        options = dict(settings)
        weight = options.pop("weight")
        schedule = options.pop("schedule", "constant")
        end = options.pop("end", None)
        return cls(name, weight, options, schedule, end)

    def at(self, progress: float) -> float:
        """Return the weight when the share ``progress`` (0 to 1) of the run is done."""
        if self.schedule == "constant":
            return self.weight
        share = progress
        if self.schedule == "cosine":
            share = (1 - math.cos(math.pi * progress)) / 2
        end = self.end or 0.0
        return self.weight + (end - self.weight) * share

    def refuse_useless(self) -> None:
        """Raise RecipeError for a weight or schedule that would do nothing, or is none."""
        if self.schedule not in SCHEDULES:
            raise RecipeError(
                f"loss '{self.name}' has schedule {self.schedule!r}:"
                f" {did_you_mean(str(self.schedule), SCHEDULES)}"
            )
        if self.schedule == "constant":
            self._refuse_constant()
        else:
            self._refuse_schedule()

    def _refuse_constant(self) -> None:
        if self.end is not None:
            raise RecipeError(
                f"loss '{self.name}' has end {self.end!r}, which does nothing without a schedule."
                " Fix: add schedule = 'linear' or 'cosine', or remove end"
            )
        is_positive = self.weight > 0 and math.isfinite(self.weight)
        if not is_positive:
            raise RecipeError(
                f"loss '{self.name}' has weight {self.weight:g} and would do nothing. Fix: give it"
                " a positive weight"
            )

    def _refuse_schedule(self) -> None:
        end = self.end or 0.0
        if not _is_weight(self.weight) or not _is_weight(end):
            raise RecipeError(
                f"loss '{self.name}' goes from weight {self.weight!r} to {self.end!r}; expected"
                " numbers of at least 0"
            )
        if self.weight == end:
            raise RecipeError(
                f"loss '{self.name}' goes from weight {self.weight:g} to {self.weight:g}. Fix:"
                " leave the schedule out"
            )


class Objective:
    """A weighted sum of terms, checked when it is built.

    ``given`` says which needs data and student fulfill, see :class:`Need`. Raises RecipeError for
    an unknown term or option, a weight of 0 (a switch that silently does nothing), and a term whose
    needs are not fulfilled.
    """

    def __init__(
        self,
        terms: Sequence[LossConfig],
        given: frozenset[Need] = frozenset({Need.TEACHER, Need.SENTENCES}),
    ):
        if not terms:
            raise RecipeError(
                "no loss is given. Fix: name at least one under [losses] of a recipe (dimefm losses"
                " lists them), e.g. "
                """--set 'losses={"clip.contrastive"={weight=1.0}}' for pairs"""
            )
        self.terms = [(config, resolve(config.name, config.options)) for config in terms]
        for config, term in self.terms:
            config.refuse_useless()
            _refuse_lacking(config.name, term, given)

    @property
    def needs(self) -> frozenset[Need]:
        """Everything that the terms need, see :class:`Need`."""
        return frozenset().union(*(term.needs for _, term in self.terms))

    def loss_modules(self, dims: Sequence[FeatureDims], seed: int) -> nn.ModuleList:
        """Return the modules of the terms by name for each teacher, see :func:`loss_modules`.

        ``dims`` are the dimensions of the student and of each teacher. The list is empty if no term
        has modules. Raises RecipeError when a term needs equal dimensions and they differ.
        """
        for of_teacher in dims:
            if of_teacher.student != of_teacher.teacher:
                self._refuse_other_width(of_teacher)
                break
        terms = [term for _, term in self.terms]
        options = [config.options for config, _ in self.terms]
        return loss_modules(terms, dims, seed, options)

    def _refuse_other_width(self, dims: FeatureDims) -> None:
        """Raise RecipeError if a term needs the dimensions of student and teacher to be equal."""
        for config, term in self.terms:
            if Need.WIDTH in term.needs:
                raise RecipeError(
                    f"loss '{config.name}' compares rows of the student with the teacher's, which"
                    f" have {dims.student} and {dims.teacher} dimensions. Fix: leave it out, or"
                    f" give a --student of {dims.teacher}"
                )

    def __call__(
        self,
        student: Features,
        teacher: Features | None,
        modules: nn.ModuleDict | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return each term's unweighted value and their weighted ``"total"``, all scalars.

        The value of a term is its mean over views and captions, unless it sees them all itself.
        ``modules`` are those of this teacher; ``progress`` (0 to 1) is the share of the run that is
        done.
        """
        student_pairs = student.view_caption_pairs()
        teacher_pairs: Sequence[Features | None] = [None] * len(student_pairs)
        if teacher is not None:
            teacher_pairs = teacher.view_caption_pairs()

        values = {}
        for config, term in self.terms:
            arguments: dict[str, Any] = dict(config.options)
            if modules is not None:
                arguments |= {name: modules[name] for name in term.uses_modules}
            sides: list[tuple[Features, Features | None]]
            if term.sees_all_views:
                sides = [(student, teacher)]
            else:
                sides = list(zip(student_pairs, teacher_pairs, strict=True))
            summed = sum(term(*pair, **arguments) for pair in sides)
            values[config.name] = summed / len(sides)
        total = sum(config.at(progress) * values[config.name] for config, _ in self.terms)
        return {"total": total, **values}


def _refuse_lacking(name: str, term: Term, given: frozenset[Need]) -> None:
    """Raise RecipeError if a term needs what is not ``given``; its width is checked later."""
    if Need.PAIRS in given:
        given = given | {Need.SENTENCES}  # a pair has its own
    lacking = sorted(term.needs - given - {Need.WIDTH})
    if not lacking:
        return
    of_model = all(need.provider.is_model for need in lacking)
    provider = "this student does" if of_model else "these sources do"
    remedies = " and ".join(need.remedy for need in lacking)
    raise RecipeError(
        f"loss '{name}' needs {' and '.join(lacking)}, which {provider} not have. Fix: leave it"
        f" out, or {remedies}"
    )


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf
