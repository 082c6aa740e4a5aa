"""The terms of a loss: what marks one, how its name is resolved, and its options."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dimefm import plugins
from dimefm.errors import RecipeError, did_you_mean
from dimefm.losses._needs import Need

# A function (student, teacher, *, modules, options) -> scalar Tensor that carries ``needs``,
# ``sees_all_views`` and ``uses_modules``.
Term = Any


def needs(*wanted: Need, sees_all_views: bool = False) -> Callable[[Term], Term]:
    """State what a term needs of its data and of the student, see :class:`Need`.

    A term is called for each view and each caption, and the mean counts. One that
    ``sees_all_views`` is called once, with all of them.
    """

    def mark(term: Term) -> Term:
        term.needs = frozenset(wanted)
        term.sees_all_views = sees_all_views
        term.uses_modules = getattr(term, "uses_modules", {})
        return term

    return mark


def terms() -> list[str]:
    """Return the names of all terms."""
    names = []
    for file in plugins.names("losses"):
        for function in plugins.module("losses", file).__all__:
            names.append(f"{file}.{function}")
    return names


def resolve(name: str, options: dict) -> Term:
    """Return the term of a name, having checked its options as :func:`check_options` does.

    Raises RecipeError for an unknown term or option, and for a value that an option does not take.
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
    defaults = options_of(term)
    kinds = get_type_hints(term)
    for option, value in options.items():
        if option not in defaults:
            raise RecipeError(
                f"loss '{name}' has no option '{option}': {did_you_mean(option, defaults)}"
            )
        default = defaults[option]
        expected = _expected(value, default, kinds.get(option, type(default)))
        if expected is not None:
            raise RecipeError(f"loss '{name}': {option} is {value!r}; expected {expected}")


def _expected(value: Any, default: Any, kind: Any) -> str | None:
    """Return what an option takes, with an example, if ``value`` is not that; else None."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return None if value in choices else " or ".join(map(repr, choices))
    kinds = get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    if bool in kinds:
        return None if isinstance(value, bool) else "true or false"
    if str in kinds:
        return None if isinstance(value, str) else f"text, e.g. {default or 'text'!r}"
    return _expected_number(value, default, allows_fractions=float in kinds)


def _expected_number(value: Any, default: Any, allows_fractions: bool) -> str | None:
    """Return what a number has to be, with an example, if ``value`` is not that; else None."""
    example = default
    if default is None:
        example = 50.0 if allows_fractions else 50
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not _in_range(value, example):
        return f"{_range_of(example)}, e.g. {example}"
    if not allows_fractions and not isinstance(value, int):
        return f"a whole number, e.g. {example}"
    return None


def _in_range(value: float, example: float) -> bool:
    """Return whether a number has the sign that an option with this example takes."""
    if example > 0:
        return value > 0
    return value >= 0 or example < 0


def _range_of(example: float) -> str:
    """Return the range of an option with this example, in words."""
    if example > 0:
        return "a positive number"
    if example == 0:
        return "a number of at least 0"
    return "a finite number"


def options_of(term: Term) -> dict[str, Any]:
    """Return the options of a term with their defaults; its modules are no options."""
    options = {}
    for parameter in inspect.signature(term).parameters.values():
        is_named = parameter.kind is parameter.KEYWORD_ONLY
        if is_named and parameter.name not in term.uses_modules:
            options[parameter.name] = parameter.default
    return options


def describe(name: str, in_full: bool = False) -> str:
    """Return a human-readable description of a term; raise RecipeError for an unknown name.

    It has the summary of the docstring (``in_full``: the whole docstring), needs, options, modules
    and the source.
    """
    term = resolve(name, {})
    docstring = inspect.getdoc(term) or ""
    kinds = get_type_hints(term)
    options = []
    for option, default in options_of(term).items():
        options.append(f"{option} = {_describe_default(default, kinds.get(option))}")
    fields = {
        "needs": sorted(term.needs),
        "options": options,
        "modules": list(term.uses_modules),
    }

    paragraphs = [" ".join(paragraph.split()) for paragraph in docstring.split("\n\n")]
    lines = docstring.splitlines() if in_full else paragraphs[:1]
    for field, values in fields.items():
        if values:
            lines.append(f"{field}: {', '.join(values)}")
    if not in_full:
        for paragraph in paragraphs[1:]:
            lines += re.findall(r"Source: .*", paragraph)
    indented = [f"  {line}".rstrip() for line in lines]
    return "\n".join([name, *indented])


def _describe_default(default: Any, kind: Any) -> str:
    """Return an option's default, spelt as in a recipe, with the other choices."""
    if isinstance(default, bool):
        return "true" if default else "false"
    choices = ["none" if default is None else repr(default)]
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if choice != default:
                choices.append(repr(choice))
    return " or ".join(choices)
