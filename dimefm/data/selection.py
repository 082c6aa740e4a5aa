"""Select the rows of a source: a range, a share by the hashes of their keys, the first so many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from dimefm.data.pairing import rows_of
from dimefm.data.rows import Row, Rows, Shard
from dimefm.data.subshards import blocks_within
from dimefm.errors import DataError, RecipeError
from dimefm.runtime.seeding import seed_of
from dimefm.storage.files import sha256_keys

ROWS = re.compile(r"([0-9]{0,18}):([0-9]{0,18})")  # of --rows
NAMED = 4  # shards that a message names at most


@dataclass(frozen=True)
class Selection:
    """Which rows of a source are taken.

    First the rows ``rows[0]`` to ``rows[1] - 1``, counted from 0 (None: to the last); of these,
    those whose :func:`place` is at least ``split[0]`` and below ``split[1]``; of these, the first
    ``limit`` (None: all).

    Its string is the command line's flags for the same selection.
    """

    rows: tuple[int, int | None] = (0, None)
    split: tuple[float, float] = (0.0, 1.0)
    limit: int | None = None

    @staticmethod
    def parse(
        rows: str | None = None,
        split: str | None = None,
        limit: int | None = None,
    ) -> Selection:
        """Return the selection of ``--rows A:B --split A:B --limit N``; None selects all.

        Raises RecipeError when a value cannot be read, or would select nothing from any source.
        """
        selected_rows = Selection.rows if rows is None else parse_rows(rows)
        selected_split = Selection.split if split is None else parse_split(split)
        return Selection(selected_rows, selected_split, limit)

    def __str__(self) -> str:
        flags: list[str] = []
        if self.rows != Selection.rows:
            first, stop = self.rows
            end = "" if stop is None else stop
            flags.append(f"--rows {first}:{end}")
        if self.split != Selection.split:
            low, high = self.split
            flags.append(f"--split {low}:{high}")
        if self.limit is not None:
            flags.append(f"--limit {self.limit}")
        return " ".join(flags)


def parse_rows(text: str) -> tuple[int, int | None]:
    """Return (first row, row after the last or None) of ``A:B``, ``A:``, ``:B`` or ``:``.

    Raises RecipeError for anything else.
    """
    match = ROWS.fullmatch(text)
    if match is not None:
        first = int(match[1] or 0)
        stop = int(match[2]) if match[2] else None
        if stop is None or stop > first:
            return first, stop
    raise RecipeError(
        f"--rows {text}: expected A:B, row numbers from 0 with A < B. Fix: say 0:1000 for the first"
        " 1000 rows"
    )


def parse_split(text: str) -> tuple[float, float]:
    """Return (start, end) of ``A:B``, ``A:`` or ``:B``, shares with 0 <= A < B <= 1.

    Raises RecipeError for anything else.
    """
    low, colon, high = text.partition(":")
    try:
        start = float(low or 0)
        end = float(high or 1)
    except ValueError:
        start = 0.0
        end = 0.0
    if not colon or not 0 <= start < end <= 1:
        raise RecipeError(
            f"--split {text}: expected A:B with 0 <= A < B <= 1. Fix: say 0:0.9 to train and 0.9:1"
            " to validate"
        )
    return start, end


def place(key: str) -> float:
    """Return the number in [0, 1) that a row's key hashes to.

    It is ``seed_of("split", key) >> 10`` over 2**53, of the key without any ``#`` and number at its
    end, so that all sentences of a photo have the place of the photo.
    """
    *_, row = rows_of(key)
    return (seed_of("split", row) >> 10) / 2**53


def within(key: str, split: tuple[float, float]) -> bool:
    """Tell whether the :func:`place` of a row's key is in ``split``, whose end is not in it."""
    start, end = split
    return start <= place(key) < end


class Selected(Shard):
    """Some rows of another shard, numbered from 0.

    They are the rows ``numbers``, one or more, ascending: a range of step 1, or int64.
    """

    def __init__(self, whole: Shard, numbers: range | np.ndarray):
        super().__init__(whole.path, whole.name)
        self.entry = whole.entry
        self.weight = whole.weight
        self.whole = whole
        first = int(numbers[0])
        end = int(numbers[-1]) + 1
        has_all_between = end - first == len(numbers)
        self.numbers = range(first, end) if has_all_between else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        return self.whole[int(self.numbers[index])]

    def keys(self) -> list[str]:
        keys = self.whole.keys()
        return [keys[number] for number in self.numbers]

    def former_keys(self) -> list[str] | None:
        keys = self.whole.former_keys()
        return None if keys is None else [keys[number] for number in self.numbers]

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        return blocks_within(self.whole, self.numbers)

    def digest(self) -> str:
        """Return a digest of the whole shard's digest and of the numbers of the rows.

        It does not depend on how the rows were selected.
        """
        return self._of(self.whole.digest())

    def digests(self) -> tuple[str, ...]:
        """Return :meth:`digest` and, of a packed shard, that of the same rows of its source."""
        return tuple(self._of(digest) for digest in self.whole.digests())

    def _of(self, digest: str) -> str:
        """Return the digest of these rows of a shard with this ``digest``."""
        if isinstance(self.numbers, range):
            which = f"{self.numbers.start}-{self.numbers.stop}"
        else:
            which = sha256(self.numbers.astype("<i8").tobytes()).hexdigest()
        return sha256_keys([digest, which])


def select(rows: Rows, selection: Selection) -> Rows:
    """Return the selected rows, in order, in shards of the same names.

    A shard without selected rows is dropped; a shard of which every row is selected stays as it is.

    Raises DataError when no row is selected.
    """
    if selection == Selection():
        return rows
    span = range(len(rows))[slice(*selection.rows)]
    left = len(rows) if selection.limit is None else selection.limit
    shards: list[Shard] = []
    for start, shard in zip(rows.starts, rows.shards, strict=False):
        if not left:
            break
        first = max(span.start - start, 0)
        end = min(span.stop - start, len(shard))
        numbers = _of_split(shard, range(first, end), selection.split)[:left]
        left -= len(numbers)
        if not len(numbers):
            continue
        is_whole = len(numbers) == len(shard)
        shards.append(shard if is_whole else Selected(shard, numbers))
    if not shards:
        raise DataError(
            f"{selection}: selects none of the {len(rows)} rows of {_names(rows.shards)}. Fix:"
            " select more of them"
        )
    return Rows(shards, rows.skipped, str(selection))


def _of_split(shard: Shard, numbers: range, split: tuple[float, float]) -> range | np.ndarray:
    """Return the rows among ``numbers`` that are in the split.

    Keys are read only when the split is not everything.
    """
    if split == Selection.split or not numbers:
        return numbers
    keys = shard.keys()
    selected = [number for number in numbers if within(keys[number], split)]
    return np.array(selected, dtype=np.int64)


def _names(shards: Sequence[Shard]) -> str:
    """Return the names of the first shards."""
    names = [shard.name for shard in shards[:NAMED]]
    if len(shards) > NAMED:
        names.append("...")
    return ", ".join(names)
