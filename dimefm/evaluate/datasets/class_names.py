"""From the class names that data carries to class numbers: by name, never by the luck of
sorting.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dimefm.errors import DataError

SHOWN = 5


def normalise(name: str) -> str:
    """Return ``name`` without case, blanks and punctuation: ``Polka-dotted`` and ``polka_dotted``
    are one name.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in folded if letter.isalnum()) or folded


def numbers(
    found: Sequence[str],
    classes: Sequence[str],
    aliases: Mapping[str, str],
    where: str,
    *,
    positional: bool = False,
) -> np.ndarray:
    """Return int64 [len(found)]: the class number of each name in ``found``.

    Names match when they are equal after :func:`normalise` and ``aliases`` (alias -> usual name).
    Names that are all decimal numbers and no class names are the class numbers themselves (counted
    from 1 when C is among them). With ``positional`` (a list that states what label 0, 1, 2 ...
    means) unknown names stand for the class at their place if the list is as long as ``classes``
    and no known name stands elsewhere. Raises DataError that names the unknown ones and the remedy.
    """
    of_class: dict[str, int] = {}
    for number, key in enumerate(_canonical(classes, aliases)):
        of_class[key] = -1 if key in of_class else number
    places = [of_class.get(key) for key in _canonical(found, aliases)]
    unknown = [name for name, place in zip(found, places, strict=True) if place is None]
    if unknown and all(name.isascii() and name.isdecimal() for name in found):
        return _decimal([int(name) for name in found], len(classes), where)
    if unknown and positional and len(found) == len(classes):
        if all(place in (None, here) for here, place in enumerate(places)):
            return np.arange(len(classes), dtype=np.int64)
    if unknown:
        raise DataError(
            f"{where}: {len(unknown)} class names are not among the {len(classes)} known:"
            f" {_some(unknown)}; expected names like {_some(classes)}; rename them, or put a"
            " classnames.txt (one name per line) beside the data"
        )
    used = Counter(places)
    for name, place in zip(found, places, strict=True):
        if place < 0 or used[place] > 1:
            raise DataError(
                f"{where}: '{name}' is not the only name of its class; give each class one name"
            )
    return np.array(places, dtype=np.int64)


def within(labels: Sequence[int] | np.ndarray, n_classes: int, where: str) -> np.ndarray:
    """Return ``labels`` as int64; raise DataError when one lies outside 0 .. n_classes - 1."""
    values = np.asarray(labels, dtype=np.int64)
    bad = values[(values < 0) | (values >= n_classes)]
    if len(bad):
        raise DataError(
            f"{where}: label {bad[0]} lies outside 0..{n_classes - 1}; labels count from 0, and -1"
            " marks a split published without labels; give a labelled split, or a classnames.txt"
            " with every class"
        )
    return values


def _decimal(values: list[int], n_classes: int, where: str) -> np.ndarray:
    counted_from_one = max(values) == n_classes and min(values) > 0
    return within(np.array(values) - counted_from_one, n_classes, where)


def _canonical(names: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Return the normalised usual name of each name."""
    usual = {normalise(alias): normalise(target) for alias, target in aliases.items()}
    return [usual.get(plain, plain) for plain in map(normalise, names)]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
