"""Learnt parts of losses: what a term needs that learns with the student and is no part of it.

A term stays a pure function: ``@uses_modules(name=factory)`` declares the parts that it takes as
keyword arguments. One part of a name serves all terms of an objective, for each teacher one.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.losses._features import Features, Term, options_of

LARGEST = 100.0  # factor on cosines, CLIP section 2.5


@dataclass(frozen=True)
class FeatureDims:
    """The dimensions of the rows of student and teacher, and of what else terms may ask of a
    student.

    ``hidden``, ``patches`` and ``words`` are those of these fields of its :class:`Features`,
    ``vocabulary`` is how many words its text tower knows; None where it has none or no term asks.
    """

    student: int
    teacher: int
    hidden: int | None = None
    patches: int | None = None
    words: int | None = None
    vocabulary: int | None = None


# Called with the widths and, by name, those options of the term that it has as further parameters.
Factory = Callable[..., nn.Module]


def uses_modules(**parts: Factory) -> Callable[[Term], Term]:
    """State the learnt parts of a term: the names of its keyword arguments and what makes each."""

    def mark(term: Term) -> Term:
        term.uses_modules = parts
        return term

    return mark


def loss_modules(
    terms: Sequence[Term],
    widths: Sequence[FeatureDims],
    seed: int,
    options: Sequence[Mapping[str, Any]] = (),
) -> nn.ModuleList:
    """Return the parts of ``terms`` by name for each teacher, with random weights drawn from
    ``seed``.

    ``options`` are those given to each term. Raises ValueError when two terms make a part of one
    name in different ways.
    """
    factories: dict[str, Factory] = {}
    made: dict[str, tuple] = {}
    for term, given in zip(terms, options or [{}] * len(terms), strict=True):
        for name, factory in term.uses_modules.items():
            named = list(inspect.signature(factory).parameters)[1:]
            chosen = {option: {**options_of(term), **given}[option] for option in named}
            if made.setdefault(name, (factory, chosen)) != (factory, chosen):
                raise ValueError(f"part '{name}' is made in two ways")
            factories[name] = functools.partial(factory, **chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(
            nn.ModuleDict({name: factories[name](found) for name in sorted(factories)})
            for found in widths
            if factories
        )


def projection(widths: FeatureDims) -> nn.Module:
    """A linear map with bias from the student's dimension to the teacher's; nothing where they are
    equal.
    """
    equal = widths.student == widths.teacher
    return nn.Identity() if equal else nn.Linear(widths.student, widths.teacher)


def fusion(widths: FeatureDims) -> nn.Module:
    """A linear map with bias from two rows of the teacher's dimension to one of the student's."""
    return nn.Linear(2 * widths.teacher, widths.student)


def project_to_teacher(
    student: Features, image_projection: nn.Module, text_projection: nn.Module
) -> tuple[Tensor, Tensor]:
    """Return the student's unit rows, images [B, E] and sentences [N, E], in the teacher's
    dimension E.

    The maps see its rows as they come, before they are made unit rows.
    """
    image, text = student.raw or (student.image, student.text)
    return F.normalize(image_projection(image), dim=-1), F.normalize(text_projection(text), dim=-1)


def scale(widths: FeatureDims) -> nn.Module:
    """A factor on cosines."""
    return Scale()


class Scale(nn.Module):
    """A learnt factor on cosines that starts as the number ln(1 / 0.07) = 2.66.

    ``forward("raw")`` is that number; ``forward("exp")`` its exponential (14.3 at first), at most
    100.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, kind: Literal["raw", "exp"]) -> Tensor:
        return self.value if kind == "raw" else self.value.exp().clamp(max=LARGEST)
