"""The trainable modules of losses: they learn with the student and are not part of it.

A term stays a pure function: ``@uses_modules(name=factory)`` declares the modules that it takes as
keyword arguments. One module of a name serves all terms of an objective, one for each teacher.
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

from dimefm.losses._features import Features
from dimefm.losses._terms import Term, options_of

MAX_SCALE = 100.0
"""The largest factor on cosines. Source: CLIP, section 2.5."""


@dataclass(frozen=True)
class FeatureDims:
    """The embedding dimensions of student and teacher, and of what else terms need of a student.

    ``hidden``, ``patches`` and ``words`` are those of these fields of its :class:`Features`;
    ``vocabulary`` is how many tokens its text tower knows. None where the student has none, or no
    term needs it.
    """

    student: int
    teacher: int
    hidden: int | None = None
    patches: int | None = None
    words: int | None = None
    vocabulary: int | None = None


# Called with the dimensions and, by name, those options of the term that are its other parameters.
Factory = Callable[..., nn.Module]


def uses_modules(**factories: Factory) -> Callable[[Term], Term]:
    """State the modules of a term: the names of its keyword arguments and what makes each."""

    def mark(term: Term) -> Term:
        term.uses_modules = factories
        return term

    return mark


def loss_modules(
    terms: Sequence[Term],
    dims: Sequence[FeatureDims],
    seed: int,
    options: Sequence[Mapping[str, Any]] = (),
) -> nn.ModuleList:
    """Return the modules of ``terms`` by name for each teacher, with weights drawn from ``seed``.

    ``options`` are those that a recipe gives each term. Raises ValueError when two terms make a
    module of one name in different ways.
    """
    factories = _factories_of(terms, options or [{}] * len(terms))
    modules = nn.ModuleList()
    if not factories:
        return modules
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for of_teacher in dims:
            made = {name: factories[name](of_teacher) for name in sorted(factories)}
            modules.append(nn.ModuleDict(made))
    return modules


def _factories_of(
    terms: Sequence[Term], options: Sequence[Mapping[str, Any]]
) -> dict[str, Callable[[FeatureDims], nn.Module]]:
    """Return what makes each module of ``terms``, by name, with the options of its term."""
    factories: dict[str, Callable[[FeatureDims], nn.Module]] = {}
    made_by: dict[str, tuple] = {}
    for term, given in zip(terms, options, strict=True):
        all_options = {**options_of(term), **given}
        for name, factory in term.uses_modules.items():
            parameters = list(inspect.signature(factory).parameters)
            chosen = {option: all_options[option] for option in parameters[1:]}
            maker = (factory, chosen)
            if made_by.setdefault(name, maker) != maker:
                raise ValueError(f"module '{name}' is made in two ways")
            factories[name] = functools.partial(factory, **chosen)
    return factories


def projection(dims: FeatureDims) -> nn.Module:
    """A linear map with bias from the student's dimension to the teacher's; identity if equal."""
    if dims.student == dims.teacher:
        return nn.Identity()
    return nn.Linear(dims.student, dims.teacher)


def fusion(dims: FeatureDims) -> nn.Module:
    """A linear map with bias from two rows of the teacher's dimension to one of the student's."""
    return nn.Linear(2 * dims.teacher, dims.student)


def project_to_teacher(
    student: Features, image_projection: nn.Module, text_projection: nn.Module
) -> tuple[Tensor, Tensor]:
    """Return the student's images [B, E] and captions [N, E] in the teacher's dimension E.

    The maps see its embeddings before normalization; the results have unit length.
    """
    image, text = student.raw or (student.image, student.text)
    image = image_projection(image)
    text = text_projection(text)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def scale(dims: FeatureDims) -> nn.Module:
    """A factor on cosines."""
    return Scale()


class Scale(nn.Module):
    """A trainable factor on cosines that starts as the number ln(1 / 0.07) = 2.66.

    ``forward("raw")`` is that number; ``forward("exp")`` its exponential (14.3 at first), at most
    100.
    """

    def __init__(self) -> None:
        super().__init__()
        start = math.log(1 / 0.07)
        self.value = nn.Parameter(torch.tensor(start))

    def forward(self, kind: Literal["raw", "exp"]) -> Tensor:
        if kind == "raw":
            return self.value
        return self.value.exp().clamp(max=MAX_SCALE)
