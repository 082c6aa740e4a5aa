"""The one formula: total = sum over terms of weight x term(student, teacher)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from dimefm.errors import RecipeError, did_you_mean
from dimefm.losses._features import Features, resolve
from dimefm.losses._modules import FeatureDims, loss_modules

SCHEDULES = ("constant", "linear", "cosine")
REMEDIES = {
    "teacher": "train on sources with a teacher's features",
    "pairs": "train on pairs (text = 'student')",
    "bias": "train a student with 'init_logit_bias' in its config, both towers of it",
    "views": "set views_per_step = 2",
    "masked": "set mask_words = 0.15",
    "neighbours": "name a graph with neighbours = FOLDER",
    "tokens": "name token caches with image_tokens and text_tokens",
    "hidden": "train an image tower",
    "patches": "train an image tower",
    "words": "train both towers (text = 'student')",
}
"""What to do where a need of a term, see :func:`~dimefm.losses.needs`, is not met."""


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
        """Return the term ``name`` with the settings of a recipe: weight, schedule, end, and its
        own options.
        """
        own = {
            key: value
            for key, value in settings.items()
            if key not in ("weight", "schedule", "end")
        }
        return cls(
            name, settings["weight"], own, settings.get("schedule", "constant"), settings.get("end")
        )

    def at(self, progress: float) -> float:
        """Return the weight when the share ``progress`` (0 to 1) of the run is done."""
        if self.schedule == "constant":
            return self.weight
        share = progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.weight + ((self.end or 0.0) - self.weight) * share

    def refuse(self) -> None:
        """Raise RecipeError for a weight or schedule that cannot be."""
        if self.schedule not in SCHEDULES:
            raise RecipeError(
                f"loss '{self.name}' has schedule {self.schedule!r}:"
                f" {did_you_mean(str(self.schedule), SCHEDULES)}"
            )
        if self.schedule == "constant" and self.end is not None:
            raise RecipeError(
                f"loss '{self.name}' has end {self.end!r}, which does nothing without a schedule;"
                " add schedule = 'linear' or 'cosine', or leave it out"
            )
        if self.schedule != "constant":
            if not all(_is_weight(value) for value in (self.weight, self.end or 0.0)):
                raise RecipeError(
                    f"loss '{self.name}' goes from weight {self.weight!r} to {self.end!r}; expected"
                    " numbers of at least 0"
                )
            if self.weight == (self.end or 0.0):
                raise RecipeError(
                    f"loss '{self.name}' goes from weight {self.weight:g} to {self.weight:g}; leave"
                    " the schedule out"
                )
        elif not (self.weight > 0 and math.isfinite(self.weight)):
            raise RecipeError(
                f"loss '{self.name}' has weight {self.weight:g} and would do nothing; give it a"
                " positive weight"
            )


class Objective:
    """A weighted sum of terms, checked when it is built.

    ``given`` says what data and student offer (``"teacher"``, ``"pairs"``, ``"bias"``; see
    :func:`~dimefm.losses.needs`). Raises RecipeError for an unknown term or option, a weight of 0
    (a switch that silently does nothing), and a term that needs what they lack.
    """

    def __init__(self, terms: Sequence[LossConfig], given: frozenset[str] = frozenset({"teacher"})):
        if not terms:
            raise RecipeError(
                "no loss is given; name at least one under [losses] of a recipe (dimefm losses"
                " lists them), e.g. "
                """--set 'losses={"clip.contrastive"={weight=1.0}}' for pairs"""
            )
        self.terms = [(term, resolve(term.name, term.options)) for term in terms]
        for term, function in self.terms:
            term.refuse()
            lacking = function.needs - given - {"width"}
            if lacking:
                raise RecipeError(
                    f"loss '{term.name}' needs {' and '.join(sorted(lacking))}, which"
                    f" {_lack(lacking)}; leave it out, or"
                    f" {' and '.join(REMEDIES[need] for need in sorted(lacking))}"
                )

    @property
    def needs(self) -> frozenset[str]:
        """Everything that the terms need, see :func:`~dimefm.losses.needs`."""
        return frozenset().union(*(function.needs for _, function in self.terms))

    def loss_modules(self, widths: Sequence[FeatureDims], seed: int) -> nn.ModuleList:
        """Return the learnt parts of the terms by name, for each teacher those of its ``widths``;
        see :func:`loss_modules`.

        Without learnt parts the list is empty. Raises RecipeError when a term needs equal widths
        and they differ.
        """
        other = next((found for found in widths if found.student != found.teacher), None)
        for term, function in self.terms:
            if other is not None and "width" in function.needs:
                raise RecipeError(
                    f"loss '{term.name}' compares rows of the student with the teacher's, which"
                    f" have {other.student} and {other.teacher} dimensions; leave it out, or give a"
                    f" --student of {other.teacher}"
                )
        return loss_modules(
            [function for _, function in self.terms],
            widths,
            seed,
            [term.options for term, _ in self.terms],
        )

    def __call__(
        self,
        student: Features,
        teacher: Features | None,
        parts: nn.ModuleDict | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return each term's unweighted value and their weighted ``"total"``, all scalars.

        The value of a term is its mean over views and captions, unless it sees them all itself.
        ``parts`` are the learnt parts for this teacher, ``progress`` (0 to 1) is the share of the
        run that is done.
        """
        values = {}
        ours = student.cells()
        theirs = [None] * len(ours) if teacher is None else teacher.cells()
        for term, function in self.terms:
            own = {name: parts[name] for name in function.uses_modules} if parts is not None else {}
            pairs = [(student, teacher)] if function.whole else list(zip(ours, theirs, strict=True))
            values[term.name] = sum(function(*pair, **own, **term.options) for pair in pairs) / len(
                pairs
            )
        total = sum(term.at(progress) * values[term.name] for term, _ in self.terms)
        return {"total": total, **values}


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _lack(missing: frozenset[str]) -> str:
    own = {"bias", "hidden", "patches", "words"}
    return "this student does not have" if missing <= own else "these sources do not have"
