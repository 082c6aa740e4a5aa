"""Map the class names in a dataset to class numbers: by name, never by sorted position."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dimefm.errors import DataError
from dimefm.runtime.printable import shown
from dimefm.runtime.text import first_few

SHOWN = 5
"""Names that a message lists at most."""

MOST_DIGITS = 9
"""Digits of a class number."""

SEPARATORS = re.compile(r"[-_\s]+")
"""What stands between the words of a name in file names."""


PARTS = ", "
"""What stands between the words for a class in WordNet."""


def normalize(name: str) -> str:
    """Return ``name`` without case, blanks and punctuation.

    ``Polka-dotted`` and ``polka_dotted`` become one name.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    letters = [character for character in folded if character.isalnum()]
    return "".join(letters) or folded


def _as_it_is(name: str) -> str:
    return name


def with_blanks(name: str) -> str:
    """Return ``name`` with a blank for each run of underscores, hyphens and blanks."""
    return SEPARATORS.sub(" ", name).strip()


def _without_case(name: str) -> str:
    return with_blanks(unicodedata.normalize("NFKC", name).lower())


def numbers(
    names: Sequence[str],
    classes: Sequence[str],
    aliases: Mapping[str, str],
    where: str,
    *,
    positional: bool = False,
    ids: Sequence[Sequence[str]] = (),
) -> np.ndarray:
    """Return the class number of each name, int64 [len(names)].

    A name that equals a class to the letter is that class. Else names match when they are equal
    with blanks for ``_`` and ``-``, then without case, then after :func:`normalize` and ``aliases``
    (alias -> usual name): so ``A`` and ``a``, or ``C``, ``C++`` and ``C#``, may be classes side by
    side. Names that are all decimal numbers and no class names are the class numbers themselves
    (counted from 1 when C is among them).

    ``ids`` are the WordNet ids of each class, () where there are none. A name that is one of them
    is that class. Names like WordNet's own, ``tench, Tinca tinca``, then match by any of their
    parts.

    Names that equal the classes one by one are these classes, even where a class stands twice. With
    ``positional`` (a list that states what label 0, 1, 2 ... means) unknown names and names of
    several classes stand for the class at their place, if the list is as long as ``classes`` and no
    known name stands elsewhere.

    Raises DataError that names the unknown or ambiguous names and the fix.
    """
    n_classes = len(classes)
    if list(names) == list(classes):
        return np.arange(n_classes, dtype=np.int64)
    candidates = _Candidates(classes, aliases, ids)
    matches = [candidates.of(name) for name in names]
    if positional and len(names) == n_classes and _known_are_in_place(matches):
        return np.arange(n_classes, dtype=np.int64)
    unknown = [name for name, match in zip(names, matches, strict=True) if not match]
    if unknown:
        if all(name.isascii() and name.isdecimal() for name in names):
            return _decimal(names, n_classes, where)
        raise DataError(
            f"{where}: {len(unknown)} class names are not among the {n_classes} known:"
            f" {_quoted(unknown)}; expected names like {_quoted(classes)}. Fix: rename them, or put"
            " a classnames.txt (one name per line) next to the data"
        )
    _refuse_ambiguous(names, matches, classes, where)
    return np.array([match[0] for match in matches], dtype=np.int64)


def _refuse_ambiguous(
    names: Sequence[str], matches: Sequence[Sequence[int]], classes: Sequence[str], where: str
) -> None:
    """Raise DataError for a name of several classes, and for a class of several names."""
    for name, match in zip(names, matches, strict=True):
        if len(match) > 1:
            raise DataError(
                f"{where}: {_quoted([name])} may be any of the classes {first_few(match, SHOWN)}"
                f" ({_quoted([classes[number] for number in match])}). Fix: give these classes"
                " different names in classnames.txt, or number the labels"
            )
    uses = Counter(match[0] for match in matches)
    for name, match in zip(names, matches, strict=True):
        if uses[match[0]] > 1:
            raise DataError(
                f"{where}: {_quoted([name])} is not the only name of its class. Fix: give each"
                " class one name"
            )


def known(
    names: Sequence[str],
    classes: Sequence[str],
    aliases: Mapping[str, str],
    ids: Sequence[Sequence[str]] = (),
) -> list[bool]:
    """Tell of each name whether it means a class, or several, see :func:`numbers`."""
    candidates = _Candidates(classes, aliases, ids)
    return [bool(candidates.of(name)) for name in names]


def within(labels: Sequence[int] | np.ndarray, n_classes: int, where: str) -> np.ndarray:
    """Return ``labels`` as int64; raise DataError when one lies outside 0 .. n_classes - 1."""
    try:
        values = np.asarray(labels, dtype=np.int64)
    except OverflowError:
        values = np.array([label if 0 <= label < n_classes else -1 for label in labels])
    outside = np.flatnonzero((values < 0) | (values >= n_classes))
    if len(outside):
        raise DataError(
            f"{where}: label {shown(labels[outside[0]])} lies outside 0..{n_classes - 1}; labels"
            " count from 0, and -1 marks a split published without labels. Fix: give a labelled"
            " split, or a classnames.txt with every class"
        )
    return values


class _Candidates:
    """The classes that a name may mean, looked up in stages, from the letter to the sound.

    A stage is made when a name is not found at those before it.
    """

    def __init__(
        self,
        classes: Sequence[str],
        aliases: Mapping[str, str],
        ids: Sequence[Sequence[str]] = (),
    ):
        self._classes = classes
        self._by_id: dict[str, list[int]] = {}
        for number, of_class in enumerate(ids):
            for identity in of_class:
                self._by_id.setdefault(identity, []).append(number)
        self._usual_of: dict[str, str] = {}
        for alias, target in aliases.items():
            self._usual_of[normalize(alias)] = normalize(target)
        stages: tuple[Callable[[str], str], ...]
        stages = (_as_it_is, with_blanks, _without_case, self._usual)
        self._stages = stages
        self._numbers_at: list[dict[str, list[int]]] = []

    def of(self, name: str) -> list[int]:
        """Return the classes of the first stage at which ``name`` has any; [] when none has."""
        if name in self._by_id:
            return self._by_id[name]
        match = self._of_whole(name)
        if match or not self._by_id or PARTS not in name:
            return match
        numbers: set[int] = set()
        for part in name.split(PARTS):
            numbers.update(self._of_whole(part))
        return sorted(numbers)

    def _of_whole(self, name: str) -> list[int]:
        """Return the classes of the first stage at which ``name`` has any; [] when none has."""
        for place, simplify in enumerate(self._stages):
            if place == len(self._numbers_at):
                self._numbers_at.append(self._numbers_by(simplify))
            match = self._numbers_at[place].get(simplify(name))
            if match is not None:
                return match
        return []

    def _numbers_by(self, simplify: Callable[[str], str]) -> dict[str, list[int]]:
        """Return the class numbers of each simplified class name."""
        numbers_of: dict[str, list[int]] = {}
        for number, name in enumerate(self._classes):
            numbers_of.setdefault(simplify(name), []).append(number)
        return numbers_of

    def _usual(self, name: str) -> str:
        """Return the normalized usual name."""
        normalized = normalize(name)
        return self._usual_of.get(normalized, normalized)


def _known_are_in_place(matches: Sequence[Sequence[int]]) -> bool:
    """Say whether every name that matches classes stands at the place of one of them."""
    for place, match in enumerate(matches):
        if match and place not in match:
            return False
    return True


def _decimal(names: Sequence[str], n_classes: int, where: str) -> np.ndarray:
    """Return class numbers that count from 0, of decimal ``names`` that may count from 1."""
    longest = max(names, key=len)
    if len(longest) > MOST_DIGITS:
        raise DataError(
            f"{where}: a label has {len(longest):,} digits, expected a class number of 0 to"
            f" {n_classes - 1}. Fix: correct it"
        )
    values = np.array([int(name) for name in names])
    counted_from_one = values.max() == n_classes and values.min() > 0
    if counted_from_one:
        values = values - 1
    return within(values, n_classes, where)


def _quoted(names: Sequence[str]) -> str:
    """Return the first names in quotes, for a message."""
    quoted = ", ".join(f"'{shown(name)}'" for name in names[:SHOWN])
    left = len(names) - SHOWN
    return f"{quoted} and {left} more" if left > 0 else quoted
