"""What every loss term receives, and how its name is found."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dimefm import plugins
from dimefm.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Features:
    """One side, student or teacher, of one batch.

    ``image`` [B, D] and ``text`` [N, D] are unit rows in float32 or float64; ``logit_scale`` is the factor on cosines, a
    float or a scalar tensor. Rows i of image and text belong together only where the data are pairs (then B == N).

    Where a text tower learns alone the two sides change places: its sentences and the teacher's rows of them stand in
    ``image``, the teacher's rows of images in ``text``. Every term then says of sentences what it says here of images.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float

    @staticmethod
    def of(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Features:
        """Return features from rows of any length and dtype: half precisions become float32, rows unit length."""
        return Features(_unit(image), _unit(text), logit_scale)

    def beside(self, image: Tensor) -> Features:
        """Return these sentences and scale beside other image rows [B, D], of any length and dtype."""
        return Features(_unit(image), self.text, self.logit_scale)

    def __getitem__(self, order: Tensor) -> Features:
        """Return the same features with both sides' rows in another order [B]."""
        return Features(self.image[order], self.text[order], self.logit_scale)


def _unit(rows: Tensor) -> Tensor:
    rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return F.normalize(rows, dim=-1)


Term = Any  # a function (student, teacher, *, options) -> scalar Tensor that carries ``needs``


def needs(*what: str) -> Callable[[Term], Term]:
    """State what a term needs of its data.

    ``"teacher"``: features of a teacher; ``"pairs"``: row i of image and text belong together.
    """

    def mark(term: Term) -> Term:
        term.needs = frozenset(what)
        return term

    return mark


def terms() -> list[str]:
    """Return the names of all terms."""
    return [f"{file}.{name}" for file in plugins.names("losses") for name in plugins.module("losses", file).__all__]


def resolve(name: str, options: dict) -> Term:
    """Return the term of a name; raise RecipeError for an unknown term or an option that it does not have.

    An option whose default is a float (temperatures, so far) takes positive numbers only.
    """
    file, _, function = name.partition(".")
    if name not in terms():
        raise RecipeError(f"unknown loss '{name}': {did_you_mean(name, terms())}")
    term = getattr(plugins.module("losses", file), function)
    known = {p.name: p.default for p in inspect.signature(term).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            raise RecipeError(f"loss '{name}' has no option '{option}': {did_you_mean(option, known)}")
        if isinstance(known[option], float) and not _positive(value):
            raise RecipeError(f"loss '{name}': {option} is {value!r}; expected a positive number, e.g. {known[option]}")
    return term


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
