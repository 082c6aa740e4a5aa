"""Numbers and names as the report writes them."""

from __future__ import annotations

from collections.abc import Sequence

from dimefm.evaluate.report.collect import Model
from dimefm.evaluate.report.parts import NONE, Key
from dimefm.evaluate.report.svg import style

SIZES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def percent(value: float | None, decimals: int = 2) -> str:
    """Return a value from 0 to 1 in percent, without the sign."""
    if value is None:
        return NONE
    return f"{100 * value:.{decimals}f}"


def count(value: float | None) -> str:
    """Return a whole number with commas."""
    if value is None:
        return NONE
    return f"{value:,.0f}"


def brief(value: float | None) -> str:
    """Return a number with three digits and a letter for its size, e.g. 87.8 M."""
    if value is None:
        return NONE
    for size, letter in SIZES:
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def joined(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def keys(models: Sequence[Model]) -> list[Key]:
    """Return the legend of a chart with these models."""
    return [Key(f"b-{style(model.number)}", model.name) for model in models]


def plural(number: int, noun: str) -> str:
    """Return a number with its noun, e.g. 5 datasets."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def cut(text: str, longest: int) -> str:
    """Return the beginning of a text that is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"
