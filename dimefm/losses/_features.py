"""What every loss term receives, and how its name is found."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from dimefm import plugins
from dimefm.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class TextTokenStates:
    """What a text tower gives of the first caption of each pair, beside its row.

    ``states`` [B, L, W] are its last layer's, ``lengths`` int64 [B] how many of the L places are
    the sentence's (its begin and end among them, both counted), ``labels`` int64 [B, L] the tokens
    that were hidden from it, -100 elsewhere.
    """

    states: Tensor
    lengths: Tensor
    labels: Tensor | None = None

    def __getitem__(self, order: Tensor) -> TextTokenStates:
        """Return the same sentences in another order [B]."""
        return TextTokenStates(
            self.states[order],
            self.lengths[order],
            None if self.labels is None else self.labels[order],
        )


@dataclass(frozen=True)
class Features:
    """One side, student or teacher, of one batch.

    ``image`` [B, D] and ``text`` [N, D] are unit rows in float32 or float64; ``logit_scale`` is the
    factor on cosines, a float or a scalar tensor, and ``logit_bias`` (SigLIP) what is added then.
    Rows i of image and text belong together only where the data are pairs (then B == N). ``raw``
    are image and text before they were made unit rows. Student and teacher may have different D
    only where the student has both towers.

    Where a text tower learns alone the two sides change places: its sentences and the teacher's
    rows of them stand in ``image``, the teacher's rows of images in ``text``. Every term then says
    of sentences what it says here of images.

    Of a grid of V views and C captions, ``image`` and ``text`` are one view and one caption. All of
    them, before they were made unit rows, are ``views`` [B, V, D] and ``captions`` [B, C, D]. Where
    terms ask for it there are, of a student, ``hidden`` [B, V, W], the views before the last
    projection, ``patches`` [B, P, W] of the first view, ``words`` of the first caption, and of a
    teacher ``neighbor_text`` [B, D], unit rows of a neighbour of each sentence, and cached
    tokens of its own dimension D in ``patches`` and ``words``.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float
    logit_bias: Tensor | float = 0.0
    raw: tuple[Tensor, Tensor] | None = None
    views: Tensor | None = None
    captions: Tensor | None = None
    hidden: Tensor | None = None
    patches: Tensor | None = None
    words: TextTokenStates | None = None
    neighbor_text: Tensor | None = None

    @staticmethod
    def from_rows(
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float = 0.0,
        **more: Any,
    ) -> Features:
        """Return features from rows of any length and dtype: half precisions become float32, rows
        unit length.

        ``image`` is [B, D] or, of several views, [B, V, D]; ``text`` likewise. ``more`` are further
        fields, as they are.
        """
        image, text = full(image), full(text)
        grid = {
            "views": image if image.ndim == 3 else None,
            "captions": text if text.ndim == 3 else None,
        }
        raw = image[:, 0] if image.ndim == 3 else image, text[:, 0] if text.ndim == 3 else text
        return Features(_unit(raw[0]), _unit(raw[1]), logit_scale, logit_bias, raw, **grid, **more)

    def with_image(self, image: Tensor, **more: Any) -> Features:
        """Return these sentences, scale and bias beside other image rows [B, D] or [B, V, D], of
        any length and dtype.
        """
        found = Features.from_rows(image, self.text, self.logit_scale, self.logit_bias, **more)
        return dataclasses.replace(found, text=self.text)

    def cells(self) -> list[Features]:
        """Return features of one view and one caption each, for every view and every caption, view
        by view.
        """
        image, text = self.raw or (self.image, self.text)
        views = [image] if self.views is None else self.views.unbind(1)
        captions = [text] if self.captions is None else self.captions.unbind(1)
        if len(views) == len(captions) == 1:
            return [self]
        alone = dataclasses.replace(self, views=None, captions=None)
        return [
            dataclasses.replace(alone, image=_unit(view), text=_unit(caption), raw=(view, caption))
            for view, caption in itertools.product(views, captions)
        ]

    def __getitem__(self, order: Tensor) -> Features:
        """Return the same features with all rows, of pairs, in another order [B]."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        rows = {
            name: value[order]
            for name, value in found.items()
            if isinstance(value, Tensor) and value.ndim
        }
        raw = None if self.raw is None else (self.raw[0][order], self.raw[1][order])
        words = None if self.words is None else self.words[order]
        return dataclasses.replace(self, **rows, raw=raw, words=words)


def full(rows: Tensor) -> Tensor:
    """Return rows of half precision in float32, others as they are."""
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1)


# A function (student, teacher, *, parts, options) -> scalar Tensor that carries ``needs`` and
# ``uses_modules``.
Term = Any


def needs(*what: str, whole: bool = False) -> Callable[[Term], Term]:
    """State what a term needs of its data and student.

    ``"teacher"``: features of a teacher; ``"pairs"``: row i of image and text belong together;
    ``"bias"``: a student with a logit bias, as SigLIP's; ``"width"``: student rows of the teacher's
    dimension, which those of one tower always have; ``"views"``: two views of each image or more;
    ``"masked"``: captions with hidden words; ``"neighbours"``: neighbours of the sentences;
    ``"hidden"``, ``"patches"``, ``"words"``: these fields of the student's features; ``"tokens"``:
    ``patches`` and ``words`` of the teacher's.

    A term is called for each view and each caption, and the mean counts; a ``whole`` one is called
    once and sees them all.
    """

    def mark(term: Term) -> Term:
        term.needs, term.whole = frozenset(what), whole
        term.uses_modules = getattr(term, "uses_modules", {})
        return term

    return mark


def terms() -> list[str]:
    """Return the names of all terms."""
    return [
        f"{file}.{name}"
        for file in plugins.names("losses")
        for name in plugins.module("losses", file).__all__
    ]


def resolve(name: str, options: dict) -> Term:
    """Return the term of a name; raise RecipeError for an unknown term or an option that it does
    not have.

    Options are checked as :func:`check_options` says.
    """
    file, _, function = name.partition(".")
    if name not in terms():
        raise RecipeError(f"unknown loss '{name}': {did_you_mean(name, terms())}")
    term = getattr(plugins.module("losses", file), function)
    check_options(name, term, options)
    return term


def check_options(name: str, term: Term, options: dict) -> None:
    """Raise RecipeError for an option that a term does not have, or a value that it does not take.

    An option's annotation says what it takes: ``bool`` true or false, ``int`` whole numbers,
    ``float`` any numbers, ``str`` text, ``Literal`` one of its words; with ``| None``, None too.
    Numbers are positive unless the default is 0 (then at least 0) or below (then finite). So a
    default is always accepted.
    """
    defaults, kinds = options_of(term), get_type_hints(term)
    for option, value in options.items():
        if option not in defaults:
            raise RecipeError(
                f"loss '{name}' has no option '{option}': {did_you_mean(option, defaults)}"
            )
        default = defaults[option]
        expected = _expected(value, default, kinds.get(option, type(default)))
        if expected is not None:
            raise RecipeError(f"loss '{name}': {option} is {value!r}; expected {expected}")


def _expected(value: object, default: Any, kind: Any) -> str | None:
    """Return what an option of this kind takes, with an example, where ``value`` is not that."""
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return None if value in words else " or ".join(map(repr, words))
    kinds = get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    if bool in kinds:
        return None if isinstance(value, bool) else "true or false"
    if str in kinds:
        return None if isinstance(value, str) else f"text, e.g. {default or 'text'!r}"
    example = default
    if default is None:
        example = 50.0 if float in kinds else 50
    if not _in_range(value, example):
        return f"{_range_of(example)}, e.g. {example}"
    if float not in kinds and not isinstance(value, int):
        return f"a whole number, e.g. {example}"
    return None


def _in_range(value: object, example: float) -> bool:
    """Say whether a value is a finite number of the sign that an option with this example takes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not -math.inf < value < math.inf:
        return False
    if example > 0:
        return value > 0
    return value >= 0 or example < 0


def _range_of(example: float) -> str:
    if example > 0:
        return "a positive number"
    return "a number of at least 0" if example == 0 else "a finite number"


def options_of(term: Term) -> dict[str, Any]:
    """Return the options of a term with their defaults; its learnt parts are none of them."""
    named = (p for p in inspect.signature(term).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return {p.name: p.default for p in named if p.name not in term.uses_modules}


def described(name: str, whole: bool = False) -> str:
    """Return what people want to know of a term: its first sentence (or the ``whole`` docstring),
    needs, options, learnt parts and source; raise RecipeError for an unknown name."""
    term = resolve(name, {})
    words = inspect.getdoc(term) or ""
    kinds = get_type_hints(term)
    options = [
        f"{option} = {_shown(value, kinds.get(option))}"
        for option, value in options_of(term).items()
    ]
    fields = {"needs": sorted(term.needs), "options": options, "modules": list(term.uses_modules)}
    if whole:
        lines = words.splitlines()
    else:
        paragraphs = [" ".join(paragraph.split()) for paragraph in words.split("\n\n")]
        lines = paragraphs[:1]
    lines += [f"{field}: {', '.join(values)}" for field, values in fields.items() if values]
    if not whole:
        lines += [source for text in paragraphs[1:] for source in re.findall(r"Source: .*", text)]
    return "\n".join([name, *(f"  {line}".rstrip() for line in lines)])


def _shown(default: object, kind: object) -> str:
    """Return an option's default for people, with its other choices."""
    others = (
        [repr(word) for word in get_args(kind) if word != default]
        if get_origin(kind) is Literal
        else []
    )
    if isinstance(default, bool):  # as in a recipe
        return "true" if default else "false"
    return " or ".join(["none" if default is None else repr(default), *others])
