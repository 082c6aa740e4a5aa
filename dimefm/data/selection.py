"""Which rows of a source run: a range of them, a share of them by the hashes of their keys, the
first so many.
"""

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


@dataclass(frozen=True)
class Selection:
    """The rows ``rows[0]`` to ``rows[1] - 1`` of all, counted from 0 (None: to the last); of these,
    those whose :func:`place` is at least ``split[0]`` and below ``split[1]``; of these, the first
    ``limit`` (None: all).

    Its string is the flags that say the same.
    """

    rows: tuple[int, int | None] = (0, None)
    split: tuple[float, float] = (0.0, 1.0)
    limit: int | None = None

    @staticmethod
    def parse(
        rows: str | None = None, split: str | None = None, limit: int | None = None
    ) -> Selection:
        """Return the selection of ``--rows A:B --split A:B --limit N``; what is None selects all.

        Raises RecipeError when a value cannot be read or would select nothing whatever the rows
        are.
        """
        return Selection(
            Selection.rows if rows is None else parse_rows(rows),
            Selection.split if split is None else parse_split(split),
            limit,
        )

    def __str__(self) -> str:
        first, stop = self.rows
        flags = {
            "--rows": (
                f"{first}:{'' if stop is None else stop}" if self.rows != Selection.rows else None
            ),
            "--split": (
                f"{self.split[0]}:{self.split[1]}" if self.split != Selection.split else None
            ),
            "--limit": self.limit,
        }
        return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)


def parse_rows(text: str) -> tuple[int, int | None]:
    """Return (first row, row after the last or None) of ``A:B``, ``A:``, ``:B`` or ``:``; raise
    RecipeError for others.
    """
    found = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})", text)
    first, stop = (int(found[1] or 0), int(found[2]) if found[2] else None) if found else (0, 0)
    if stop is not None and stop <= first:
        raise RecipeError(
            f"--rows {text}: expected A:B, row numbers from 0 with A < B; say 0:1000 for the first"
            " 1000 rows"
        )
    return first, stop


def parse_split(text: str) -> tuple[float, float]:
    """Return (start, end) of ``A:B``, ``A:`` or ``:B``, shares with 0 <= A < B <= 1; raise
    RecipeError for others.
    """
    low, _, high = text.partition(":")
    try:
        start, end = float(low or 0), float(high or 1)
    except ValueError:
        start = end = 0.0
    if ":" not in text or not 0 <= start < end <= 1:
        raise RecipeError(
            f"--split {text}: expected A:B with 0 <= A < B <= 1; say 0:0.9 to train and 0.9:1 to"
            " validate"
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
    """Say whether the :func:`place` of a row's key is at least ``split[0]`` and below
    ``split[1]``.
    """
    return split[0] <= place(key) < split[1]


class Selected(Shard):
    """The rows ``numbers`` (one or more, ascending: a range of step 1, or int64) of another shard,
    numbered anew from 0.
    """

    def __init__(self, whole: Shard, numbers: range | np.ndarray):
        super().__init__(whole.path, whole.name)
        self.entry, self.weight = whole.entry, whole.weight
        dense = numbers[-1] - numbers[0] + 1 == len(numbers)
        self.whole, self.numbers = (
            whole,
            (range(int(numbers[0]), int(numbers[-1]) + 1) if dense else numbers),
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        return self.whole[int(self.numbers[index])]

    def keys(self) -> list[str]:
        keys = self.whole.keys()
        return [keys[number] for number in self.numbers]

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        return blocks_within(self.whole, self.numbers)

    def digest(self) -> str:
        """Return a digest of the whole shard's and of which of its rows these are, however they
        were selected.
        """
        return self._of(self.whole.digest())

    def digests(self) -> tuple[str, ...]:
        """Return :meth:`digest` and, of a packed shard, those of the same rows of what it was
        packed from.
        """
        return tuple(map(self._of, self.whole.digests()))

    def _of(self, digest: str) -> str:
        if isinstance(self.numbers, range):
            which = f"{self.numbers.start}-{self.numbers.stop}"
        else:
            which = sha256(self.numbers.astype("<i8").tobytes()).hexdigest()
        return sha256_keys([digest, which])


def select(rows: Rows, selection: Selection) -> Rows:
    """Return the selected rows, in order, in shards of the same names; shards without one are left
    out, and shards of which every row is selected stay as they are.

    Raises DataError when no row is selected.
    """
    if selection == Selection():
        return rows
    span = range(len(rows))[slice(*selection.rows)]
    left = len(rows) if selection.limit is None else selection.limit
    shards: list[Shard] = []
    for start, shard in zip(rows.starts, rows.shards, strict=False):
        here = range(max(span.start - start, 0), min(span.stop - start, len(shard)))
        numbers = _of_split(shard, here, selection.split)[:left] if left else ()
        left -= len(numbers)
        if len(numbers):
            shards.append(shard if len(numbers) == len(shard) else Selected(shard, numbers))
    if not shards:
        raise DataError(
            f"{selection}: selects none of the {len(rows)} rows of {_names(rows.shards)}; select"
            " more of them"
        )
    return Rows(shards)


def _of_split(shard: Shard, numbers: range, split: tuple[float, float]) -> range | np.ndarray:
    """Return the rows among ``numbers`` that lie in the split; keys are read only when it is not
    everything.
    """
    if split == Selection.split or not numbers:
        return numbers
    keys = shard.keys()
    return np.array([number for number in numbers if within(keys[number], split)], dtype=np.int64)


def _names(shards: Sequence[Shard]) -> str:
    return ", ".join(shard.name for shard in shards[:4]) + (", ..." if len(shards) > 4 else "")
