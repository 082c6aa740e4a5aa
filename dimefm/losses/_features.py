"""What every loss term receives, and how its name is found."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from dimefm import plugins
from dimefm.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Features:
    """One side, student or teacher, of one batch.

    ``image`` [B, D] and ``text`` [N, D] are unit rows in float32 or float64; ``logit_scale`` is the factor on cosines, a
    float or a scalar tensor, and ``logit_bias`` (SigLIP) what is added then. Rows i of image and text belong together only
    where the data are pairs (then B == N). ``raw`` are image and text before they were made unit rows. Student and teacher
    may have different D only where the student has both towers.

    Where a text tower learns alone the two sides change places: its sentences and the teacher's rows of them stand in
    ``image``, the teacher's rows of images in ``text``. Every term then says of sentences what it says here of images.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float
    logit_bias: Tensor | float = 0.0
    raw: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float = 0.0) -> Features:
        """Return features from rows of any length and dtype: half precisions become float32, rows unit length."""
        raw = _full(image), _full(text)
        return Features(_unit(raw[0]), _unit(raw[1]), logit_scale, logit_bias, raw)

    def beside(self, image: Tensor) -> Features:
        """Return these sentences, scale and bias beside other image rows [B, D], of any length and dtype."""
        image = _full(image)
        return Features(_unit(image), self.text, self.logit_scale, self.logit_bias, (image, self.text))

    def __getitem__(self, order: Tensor) -> Features:
        """Return the same features with both sides' rows in another order [B]."""
        raw = None if self.raw is None else (self.raw[0][order], self.raw[1][order])
        return Features(self.image[order], self.text[order], self.logit_scale, self.logit_bias, raw)


def _full(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1)


# A function (student, teacher, *, parts, options) -> scalar Tensor that carries ``needs`` and ``learns``.
Term = Any


def needs(*what: str) -> Callable[[Term], Term]:
    """State what a term needs of its data and student.

    ``"teacher"``: features of a teacher; ``"pairs"``: row i of image and text belong together; ``"bias"``: a student with a
    logit bias, as SigLIP's; ``"width"``: student rows of the teacher's dimension, which those of one tower always have.
    """

    def mark(term: Term) -> Term:
        term.needs = frozenset(what)
        term.learns = getattr(term, "learns", {})
        return term

    return mark


def terms() -> list[str]:
    """Return the names of all terms."""
    return [f"{file}.{name}" for file in plugins.names("losses") for name in plugins.module("losses", file).__all__]


def resolve(name: str, options: dict) -> Term:
    """Return the term of a name; raise RecipeError for an unknown term or an option that it does not have.

    An option that is a number (a temperature, a scale) takes positive numbers only, one of a few words only these.
    """
    file, _, function = name.partition(".")
    if name not in terms():
        raise RecipeError(f"unknown loss '{name}': {did_you_mean(name, terms())}")
    term = getattr(plugins.module("losses", file), function)
    known, kinds = options_of(term), get_type_hints(term)
    for option, value in options.items():
        if option not in known:
            raise RecipeError(f"loss '{name}' has no option '{option}': {did_you_mean(option, known)}")
        words = get_args(kinds[option]) if get_origin(kinds.get(option)) is Literal else ()
        if words and value not in words:
            raise RecipeError(f"loss '{name}': {option} is {value!r}; expected {' or '.join(map(repr, words))}")
        if not words and not _positive(value):
            example = 50.0 if known[option] is None else known[option]
            raise RecipeError(f"loss '{name}': {option} is {value!r}; expected a positive number, e.g. {example}")
    return term


def options_of(term: Term) -> dict[str, Any]:
    """Return the options of a term with their defaults; its learnt parts are none of them."""
    named = (p for p in inspect.signature(term).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return {p.name: p.default for p in named if p.name not in term.learns}


def described(name: str, whole: bool = False) -> str:
    """Return what people want to know of a term: its first sentence (or the ``whole`` docstring), needs, options, learnt
    parts and source; raise RecipeError for an unknown name."""
    term = resolve(name, {})
    words = inspect.getdoc(term) or ""
    kinds = get_type_hints(term)
    options = [f"{option} = {_shown(value, kinds.get(option))}" for option, value in options_of(term).items()]
    fields = {"needs": sorted(term.needs), "options": options, "learnt": list(term.learns)}
    lines = words.splitlines() if whole else [words.splitlines()[0]]
    lines += [f"{field}: {', '.join(values)}" for field, values in fields.items() if values]
    lines += [] if whole else [line for line in words.splitlines() if line.startswith("Source:")]
    return "\n".join([name, *(f"  {line}".rstrip() for line in lines)])


def _shown(default: object, kind: object) -> str:
    """Return an option's default for people, with its other choices."""
    others = [repr(word) for word in get_args(kind) if word != default] if get_origin(kind) is Literal else []
    return " or ".join(["none" if default is None else repr(default), *others])


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
