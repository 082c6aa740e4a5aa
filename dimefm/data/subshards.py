"""Long files in parts: a file of many rows is several shards.

So a long extraction has units of work to resume at. Plain text, tables, JSON lines and Parquet may
be cut, as they are :class:`Divisible`. DIME-FM's TSVs and tars are not: a file is one shard.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod

import numpy as np

from dimefm.data.rows import Row, Shard
from dimefm.storage.files import sha256_keys

ROWS_PER_PART = 1_000_000


class Divisible(Shard):
    """A shard that knows the keys of any range of its rows, and so may be cut."""

    @abstractmethod
    def keys_of(self, rows: range) -> list[str]:
        """Return the keys of ``rows`` (a range of step 1) in order, also of unreadable rows."""

    def keys(self) -> list[str]:
        return self.keys_of(range(len(self)))

    def former_keys_of(self, rows: range) -> list[str] | None:
        """Return :meth:`former_keys` of ``rows``."""
        return None

    def former_keys(self) -> list[str] | None:
        return self.former_keys_of(range(len(self)))

    def cuts(self, most: int) -> list[int]:
        """Return where parts of at most ``most`` rows begin, 0 first."""
        starts = list(range(0, len(self), most))
        return starts or [0]


class Part(Shard):
    """Rows ``rows`` (a range of step 1) of another shard; keys and errors are the whole shard's."""

    def __init__(self, whole: Divisible, name: str, rows: range):
        super().__init__(whole.path, name)
        self.whole = whole
        self.rows = rows
        self.entry = whole.entry
        self.weight = whole.weight

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.whole[self.rows[index]]

    def keys(self) -> list[str]:
        return self.whole.keys_of(self.rows)

    def former_keys(self) -> list[str] | None:
        return self.whole.former_keys_of(self.rows)

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        return blocks_within(self.whole, self.rows)

    def digest(self) -> str:
        span = f"{self.rows.start}-{self.rows.stop}"
        return sha256_keys([self.whole.digest(), span])


def blocks_within(whole: Shard, rows: range | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return :meth:`Shard.blocks` of a shard that consists of ``rows`` (ascending) of another."""
    starts, sizes = whole.blocks()
    if isinstance(rows, range):
        firsts = np.clip(starts - rows.start, 0, len(rows))
    else:
        firsts = np.searchsorted(rows, starts)
    has_rows = np.diff(firsts, append=len(rows)) > 0
    return firsts[has_rows], sizes[has_rows]


def cut(shard: Shard) -> list[Shard]:
    """Return the parts of a divisible shard of more than ROWS_PER_PART rows; else the shard.

    The parts are named ``NAME/00000``, ``NAME/00001`` and so on.
    """
    if not isinstance(shard, Divisible) or len(shard) <= ROWS_PER_PART:
        return [shard]
    starts = shard.cuts(ROWS_PER_PART)
    if len(starts) == 1:
        return [shard]
    edges = [*starts, len(shard)]
    parts: list[Shard] = []
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        rows = range(start, end)
        parts.append(Part(shard, f"{shard.name}/{number:05d}", rows))
    return parts
