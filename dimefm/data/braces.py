"""Braces in the names of sources, as shells and open_clip read them: ``{00000..00009}.tar``."""

from __future__ import annotations

import re

from dimefm.errors import DataError

GROUP = re.compile(r"\{([^{}]*)\}")  # the innermost braces
NUMBERS = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})")
MOST_NAMES = 1_000_000


def expand_braces(text: str) -> list[str]:
    """Return the names that braces stand for, in order; a text without braces is the only one.

    ``{A..B}`` are the numbers from A to B with as many digits as A, and ``{a,b}`` are a and b.
    Raises DataError for more than a million names.
    """
    names = [""]
    end = 0
    for match in GROUP.finditer(text):
        values = _values(match[1])
        if values is None:
            continue
        before = text[end : match.start()]
        end = match.end()
        if len(names) * len(values) > MOST_NAMES:
            raise DataError(
                f"{text}: stands for more than {MOST_NAMES:,} names. Fix: correct the braces"
            )
        names = [f"{name}{before}{value}" for name in names for value in values]
    return [name + text[end:] for name in names]


def _values(inner: str) -> list[str] | range | None:
    """Return what a pair of braces stands for, None when it is a part of the name."""
    match = NUMBERS.fullmatch(inner)
    if match is None:
        return inner.split(",") if "," in inner else None
    first = int(match[1])
    last = int(match[2])
    step = 1 if first <= last else -1
    numbers = range(first, last + step, step)
    if len(numbers) > MOST_NAMES:
        return numbers
    width = len(match[1])
    return [str(number).zfill(width) for number in numbers]
