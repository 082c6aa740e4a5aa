"""Every error that dimefm raises on purpose.

    DimefmError            one line: what, where, expected, found, remedy
    ├── CacheError         a feature cache is absent, unfinished, damaged or made for something else
    ├── DataError          a source of images or sentences cannot be read
    │   └── BadRow         one row of it cannot; extraction quarantines the row and goes on
    ├── RecipeError        a training run is described wrongly or asks for what the data lacks
    └── ModelError         an encoder or student is unknown, incomplete or does not fit

The command line prints these as one line and exits with 1. Anything else that escapes is a defect
of dimefm.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 24  # names in a message


class DimefmError(Exception):
    """Base of all errors that name a cause the user can mend."""


class CacheError(DimefmError):
    """A feature cache is absent, unfinished, damaged, or belongs to other rows or another
    teacher.
    """


class DataError(DimefmError):
    """A source of images or sentences cannot be read as a whole."""


class BadRow(DataError):
    """One row cannot be read; the message is the reason that goes into the quarantine list."""


class RecipeError(DimefmError):
    """A training run is described wrongly, or asks for something that its data lacks."""


class ModelError(DimefmError):
    """An encoder or student is unknown, incomplete, or does not fit the features."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'?"`` for the nearest known name, else the (first few) known
    names.
    """
    known = sorted(known)
    same_letters = [other for other in known if other.casefold() == name.casefold()]
    near = same_letters or difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    more = f", ... ({len(known)} in all)" if len(known) > FEW else ""
    return f"known: {', '.join(known[:FEW])}{more}" if known else "none are known"
