"""Which row is used when: pure functions of (seed, position), without an index of rows in memory.

An :class:`Order` is an endless sequence of rows. :class:`Shuffled` deals all rows, :class:`Blocks`
those of a few blocks at a time, for what is slow at random rows, and :class:`Mixed` several orders
in fixed shares.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.runtime.seeding import permute, seed_of

PATTERNS = (1_000, 10_000, 100_000)  # positions over which a mix keeps its shares exactly
LEAST = 10  # positions that the smallest share has in a pattern, if the longest pattern allows it


@dataclass(frozen=True)
class Spans:
    """Runs of rows, one after the other; their rows are counted through by *places* 0..len-1."""

    firsts: np.ndarray  # [runs] first row of each
    ends: np.ndarray  # [runs + 1] first place of each, and the number of places

    @staticmethod
    def of(firsts: np.ndarray, sizes: np.ndarray) -> Spans:
        """Return runs by their first rows and numbers of rows, int64 [runs] each; those without a
        row are left out.
        """
        firsts, sizes = (np.asarray(values, dtype=np.int64) for values in (firsts, sizes))
        return Spans(firsts[sizes > 0], np.append(0, np.cumsum(sizes[sizes > 0])))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at places, int64 of the same shape."""
        run = (
            np.searchsorted(self.ends, places, side="right") - 1
            if len(self.firsts) > 1
            else np.intp(0)
        )
        return places + (self.firsts[run] - self.ends[run])

    def taken(self, runs: np.ndarray) -> Spans:
        """Return the runs of these numbers in this order."""
        return Spans.of(self.firsts[runs], np.diff(self.ends)[runs])


class Order(ABC):
    """An endless sequence of rows: which row stands at each position, a pure function of the
    position.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the rows of an epoch."""

    @abstractmethod
    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows, epochs), int64 [count] each, of the positions ``first`` to ``first + count
        - 1``, all at least 0.

        The epoch says how many times the row was dealt before.
        """


class Shuffled(Order):
    """All rows (0..n-1, or those of spans) without replacement, epoch by epoch, in an order of its
    own each.

    Nothing is left out at the end of an epoch. ``what`` separates independent orders of one seed
    ("images", "texts").
    """

    def __init__(self, rows: int | Spans, seed: int, what: str):
        self._spans = rows if isinstance(rows, Spans) else Spans.of(np.array([0]), np.array([rows]))
        self._seed, self._what = seed, what
        _refuse_nothing(self)

    def __len__(self) -> int:
        return len(self._spans)

    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, epochs = _empty(count)
        for epoch, places, here in _passes(first, count, len(self)):
            rows[here] = self._spans.rows(
                permute(places, len(self), seed_of(self._seed, self._what, epoch))
            )
            epochs[here] = epoch
        return rows, epochs


class Blocks(Order):
    """All rows of ``blocks`` without replacement, epoch by epoch: the blocks are permuted, then the
    rows of each ``window`` blocks that come to stand together.

    So the rows of ``window`` blocks are in use at a time (of twice as many at the passage to the
    next). Memory is the table of blocks: 48 bytes a block, whatever the number of rows.
    """

    def __init__(self, blocks: Spans, window: int, seed: int, what: str):
        self._blocks, self._window, self._seed, self._what = blocks, window, seed, what
        self._dealt = functools.lru_cache(maxsize=2)(self._deal)
        _refuse_nothing(self)

    def __len__(self) -> int:
        return len(self._blocks)

    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, epochs = _empty(count)
        for epoch, places, here in _passes(first, count, len(self)):
            rows[here] = self._rows(epoch, places)
            epochs[here] = epoch
        return rows, epochs

    def _deal(self, epoch: int) -> Spans:
        """Return the blocks in the order of an epoch."""
        count = len(self._blocks.firsts)
        return self._blocks.taken(
            permute(np.arange(count), count, seed_of(self._seed, self._what, "blocks", epoch))
        )

    def _rows(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Return the rows at consecutive places of an epoch."""
        dealt, found = self._dealt(epoch), np.empty_like(places)
        edges = np.append(dealt.ends[: -1 : self._window], len(dealt))  # of windows
        done = 0
        while done < len(places):
            window = int(np.searchsorted(edges, places[done], side="right")) - 1
            start, stop = edges[window : window + 2].tolist()
            inside = places[done : done + stop - int(places[done])]
            key = seed_of(self._seed, self._what, "window", epoch, window)
            found[done : done + len(inside)] = dealt.rows(
                start + permute(inside - start, stop - start, key)
            )
            done += len(inside)
        return found


class Mixed(Order):
    """Several orders in fixed shares: the positions are cut into patterns of equal length, over
    each of which order i has exactly ``quotas[i]`` positions, in a new random arrangement; each
    order is gone through from its own beginning.

    The shares are any positive numbers; :func:`quotas_of` rounds them. An epoch is as many rows as
    all orders have together: in it order i is gone through ``share[i] / sum(share) * len(self) /
    len(order[i])`` times. The epoch of a row is that of its own order.
    """

    def __init__(self, orders: Sequence[Order], shares: Sequence[float], seed: int, what: str):
        self._orders, self._seed, self._what = tuple(orders), seed, what
        self.quotas = quotas_of(shares)
        if len(self.quotas) != len(self._orders) or not self.quotas.all():
            raise ValueError(f"{len(self._orders)} orders with {self.quotas.tolist()} positions")
        self._pattern = np.repeat(np.arange(len(self._orders), dtype=np.int32), self.quotas)
        self._arranged = functools.lru_cache(maxsize=2)(self._arrange)

    def __len__(self) -> int:
        return sum(map(len, self._orders))

    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, epochs = _empty(count)
        chosen, length = np.empty(count, dtype=np.int32), len(self._pattern)
        for number, places, here in _passes(first, count, length):
            chosen[here] = self._arranged(number)[places]
        number, before = divmod(first, length)
        begun = number * self.quotas + np.bincount(
            self._arranged(number)[:before], minlength=len(self._orders)
        )
        for i, order in enumerate(self._orders):
            here = np.flatnonzero(chosen == i)
            rows[here], epochs[here] = order.take(int(begun[i]), len(here))
        return rows, epochs

    def _arrange(self, number: int) -> np.ndarray:
        """Return which order each position of a pattern belongs to."""
        length = len(self._pattern)
        return self._pattern[
            permute(np.arange(length), length, seed_of(self._seed, self._what, "mix", number))
        ]


def quotas_of(shares: Sequence[float]) -> np.ndarray:
    """Return how many positions of a pattern each of the ``shares`` (positive) has, int64; a very
    small one may have none.

    By largest remainder: no quota is further than 1 from share * length. The pattern is the
    shortest of PATTERNS that gives each share at least LEAST positions, else the longest.
    """
    wanted = np.asarray(shares, dtype=np.float64)
    if not len(wanted) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise ValueError(f"shares {list(shares)}")
    wanted /= wanted.sum()
    length = next((length for length in PATTERNS if (wanted * length).min() >= LEAST), PATTERNS[-1])
    quotas = np.floor(wanted * length).astype(np.int64)
    missing = length - int(quotas.sum())
    quotas[np.argsort(quotas - wanted * length, kind="stable")[:missing]] += 1
    return quotas


def _passes(first: int, count: int, length: int) -> Iterator[tuple[int, np.ndarray, slice]]:
    """Yield (number, places in it, where these stand in the result) for each stretch of ``length``
    that positions touch.
    """
    for number in range(first // length, -(-(first + count) // length)):
        start, stop = max(first, number * length), min(first + count, (number + 1) * length)
        places = np.arange(start - number * length, stop - number * length, dtype=np.int64)
        yield number, places, slice(start - first, stop - first)


def _empty(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)


def _refuse_nothing(order: Order) -> None:
    if not len(order):
        raise ValueError("an order of no rows")
