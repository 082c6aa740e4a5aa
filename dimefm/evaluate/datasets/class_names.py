"""Map the class names in a dataset to class numbers: by name, never by sorted position."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dimefm.errors import DataError
from dimefm.runtime.text import first_few

SHOWN = 5
"""Names that a message lists at most."""

AMBIGUOUS = -1
"""Class number of a name that two classes share."""


def normalize(name: str) -> str:
    """Return ``name`` without case, blanks and punctuation.

    ``Polka-dotted`` and ``polka_dotted`` become one name.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    letters = [character for character in folded if character.isalnum()]
    return "".join(letters) or folded


def numbers(
    names: Sequence[str],
    classes: Sequence[str],
    aliases: Mapping[str, str],
    where: str,
    *,
    positional: bool = False,
) -> np.ndarray:
    """Return the class number of each name, int64 [len(names)].

    Names match when they are equal after :func:`normalize` and ``aliases`` (alias -> usual name).
    Names that are all decimal numbers and no class names are the class numbers themselves (counted
    from 1 when C is among them). With ``positional`` (a list that states what label 0, 1, 2 ...
    means) unknown names stand for the class at their place if the list is as long as ``classes``
    and no known name stands elsewhere. Raises DataError that names the unknown names and the fix.
    """
    n_classes = len(classes)
    number_of = _number_by_name(classes, aliases)
    matches: list[int | None] = []
    unknown: list[str] = []
    for name, usual_name in zip(names, _usual_names(names, aliases), strict=True):
        match = number_of.get(usual_name)
        matches.append(match)
        if match is None:
            unknown.append(name)
    if unknown:
        if all(name.isascii() and name.isdecimal() for name in names):
            return _decimal(names, n_classes, where)
        if positional and len(names) == n_classes and _known_are_in_place(matches):
            return np.arange(n_classes, dtype=np.int64)
        raise DataError(
            f"{where}: {len(unknown)} class names are not among the {n_classes} known:"
            f" {_quoted(unknown)}; expected names like {_quoted(classes)}. Fix: rename them, or put"
            " a classnames.txt (one name per line) next to the data"
        )
    uses = Counter(matches)
    for name, match in zip(names, matches, strict=True):
        if match == AMBIGUOUS or uses[match] > 1:
            raise DataError(
                f"{where}: '{name}' is not the only name of its class. Fix: give each class one"
                " name"
            )
    return np.array(matches, dtype=np.int64)


def within(labels: Sequence[int] | np.ndarray, n_classes: int, where: str) -> np.ndarray:
    """Return ``labels`` as int64; raise DataError when one lies outside 0 .. n_classes - 1."""
    values = np.asarray(labels, dtype=np.int64)
    outside = values[(values < 0) | (values >= n_classes)]
    if len(outside):
        raise DataError(
            f"{where}: label {outside[0]} lies outside 0..{n_classes - 1}; labels count from 0, and"
            " -1 marks a split published without labels. Fix: give a labelled split, or a"
            " classnames.txt with every class"
        )
    return values


def _number_by_name(classes: Sequence[str], aliases: Mapping[str, str]) -> dict[str, int]:
    """Return normalised class name -> class number, or ``AMBIGUOUS`` when two classes share it."""
    number_of: dict[str, int] = {}
    for number, name in enumerate(_usual_names(classes, aliases)):
        if name in number_of:
            number_of[name] = AMBIGUOUS
        else:
            number_of[name] = number
    return number_of


def _known_are_in_place(matches: Sequence[int | None]) -> bool:
    """Say whether every name that matches a class stands at the place of its class."""
    for place, match in enumerate(matches):
        if match is not None and match != place:
            return False
    return True


def _decimal(names: Sequence[str], n_classes: int, where: str) -> np.ndarray:
    """Return class numbers that count from 0, of decimal ``names`` that may count from 1."""
    values = np.array([int(name) for name in names])
    counted_from_one = values.max() == n_classes and values.min() > 0
    if counted_from_one:
        values = values - 1
    return within(values, n_classes, where)


def _usual_names(names: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Return the normalised usual name of each name."""
    usual_of = {}
    for alias, target in aliases.items():
        usual_of[normalize(alias)] = normalize(target)
    usual_names = []
    for name in names:
        normalized = normalize(name)
        usual_names.append(usual_of.get(normalized, normalized))
    return usual_names


def _quoted(names: Sequence[str]) -> str:
    """Return the first names in quotes, for a message."""
    quoted = [f"'{name}'" for name in names]
    return first_few(quoted, SHOWN)
