"""Which row is used when: pure functions of (seed, position), without an index of rows in memory.

An :class:`Order` is an endless sequence of rows. There are three kinds:

* :class:`Shuffled` deals all rows.
* :class:`ShuffledBlocks` deals the rows of a few blocks at a time, for sources that are slow at
  random rows.
* :class:`WeightedOrder` deals several orders in fixed shares.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dimefm.runtime.seeding import permute, seed_of

PATTERNS = (1_000, 10_000, 100_000)
"""Lengths of a pattern: the positions over which a :class:`WeightedOrder` keeps its shares."""

MIN_QUOTA = 10
"""Positions of the smallest share in a pattern, if the longest pattern allows as many."""


@dataclass(frozen=True)
class Spans:
    """Runs of consecutive rows, one run after the other.

    Their rows are counted through by *places* 0..len-1.
    """

    firsts: np.ndarray  # [runs] first row of each run
    ends: np.ndarray  # [runs + 1] first place of each run, then the number of places

    @staticmethod
    def from_sizes(firsts: np.ndarray, sizes: np.ndarray) -> Spans:
        """Return runs from their first rows and numbers of rows, int64 [runs] each.

        Runs without a row are dropped.
        """
        firsts = np.asarray(firsts, dtype=np.int64)
        sizes = np.asarray(sizes, dtype=np.int64)
        filled = sizes > 0
        last_places = np.cumsum(sizes[filled])
        ends = np.append(0, last_places)
        return Spans(firsts[filled], ends)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at places, int64 of the same shape."""
        if len(self.firsts) > 1:
            run = np.searchsorted(self.ends, places, side="right") - 1
        else:
            run = np.intp(0)
        shift = self.firsts[run] - self.ends[run]
        return places + shift

    def select(self, runs: np.ndarray) -> Spans:
        """Return the runs of these numbers in this order."""
        sizes = np.diff(self.ends)
        firsts = self.firsts[runs]
        return Spans.from_sizes(firsts, sizes[runs])


class Dealt(NamedTuple):
    """What an order has at some positions: the rows, and how often each was dealt before."""

    rows: np.ndarray  # int64 [positions]
    epochs: np.ndarray  # int64 [positions]

    @staticmethod
    def empty(count: int) -> Dealt:
        """Return room for ``count`` positions."""
        rows = np.empty(count, dtype=np.int64)
        epochs = np.empty(count, dtype=np.int64)
        return Dealt(rows, epochs)


class Order(ABC):
    """An endless sequence of rows: the row at each position is a pure function of the position."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows of an epoch."""

    @abstractmethod
    def take(self, first: int, count: int) -> Dealt:
        """Return what stands at ``count`` positions from ``first`` on, which is at least 0."""


class Shuffled(Order):
    """All rows without replacement, epoch by epoch, each epoch in an order of its own.

    The rows are 0..n-1, or those of spans. No row is dropped at the end of an epoch. ``stream``
    separates independent orders of one seed ("images", "texts").
    """

    def __init__(self, rows: int | Spans, seed: int, stream: str):
        if not isinstance(rows, Spans):
            first = np.array([0])
            size = np.array([rows])
            rows = Spans.from_sizes(first, size)
        self._spans = rows
        self._seed = seed
        self._stream = stream
        _refuse_empty(self)

    def __len__(self) -> int:
        return len(self._spans)

    def take(self, first: int, count: int) -> Dealt:
        dealt = Dealt.empty(count)
        for stretch in _stretches(first, count, len(self)):
            epoch = stretch.number
            key = seed_of(self._seed, self._stream, epoch)
            places = permute(stretch.places, len(self), key)
            dealt.rows[stretch.target] = self._spans.rows(places)
            dealt.epochs[stretch.target] = epoch
        return dealt


class ShuffledBlocks(Order):
    """All rows of ``blocks`` without replacement, epoch by epoch.

    In each epoch the blocks are permuted; then the rows of each ``window`` consecutive blocks are.
    So the rows of ``window`` blocks are in use at a time (of twice as many at the passage to the
    next window). Memory is the table of blocks: 48 bytes a block, whatever the number of rows.
    """

    def __init__(self, blocks: Spans, window: int, seed: int, stream: str):
        self._blocks = blocks
        self._window = window
        self._seed = seed
        self._stream = stream
        self._permuted = functools.lru_cache(maxsize=2)(self._permute_blocks)
        _refuse_empty(self)

    def __len__(self) -> int:
        return len(self._blocks)

    def take(self, first: int, count: int) -> Dealt:
        dealt = Dealt.empty(count)
        for stretch in _stretches(first, count, len(self)):
            epoch = stretch.number
            rows = self._rows(epoch, stretch.places)
            dealt.rows[stretch.target] = rows
            dealt.epochs[stretch.target] = epoch
        return dealt

    def _permute_blocks(self, epoch: int) -> Spans:
        """Return the blocks in the order of an epoch."""
        count = len(self._blocks.firsts)
        key = seed_of(self._seed, self._stream, "blocks", epoch)
        blocks = np.arange(count)
        return self._blocks.select(permute(blocks, count, key))

    def _rows(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Return the rows at consecutive places of an epoch."""
        blocks = self._permuted(epoch)
        window_starts = blocks.ends[: -1 : self._window]
        edges = np.append(window_starts, len(blocks))
        rows = np.empty_like(places)
        done = 0
        while done < len(places):
            place = int(places[done])
            window = int(np.searchsorted(edges, place, side="right")) - 1
            start = int(edges[window])
            stop = int(edges[window + 1])
            after = min(done + stop - place, len(places))
            key = seed_of(self._seed, self._stream, "window", epoch, window)
            inside = places[done:after] - start
            shuffled = permute(inside, stop - start, key)
            rows[done:after] = blocks.rows(start + shuffled)
            done = after
        return rows


class WeightedOrder(Order):
    """Several orders in fixed shares.

    The positions are cut into patterns of equal length. In each pattern order i has exactly
    ``quotas[i]`` positions, in a new random arrangement. Each order is gone through from its own
    beginning.

    The shares are any positive numbers; :func:`quotas_of` rounds them. An epoch is as many rows as
    all orders have together: in it order i is gone through ``share[i] / sum(share) * len(self) /
    len(order[i])`` times. The epoch of a row is that of its own order.
    """

    def __init__(self, orders: Sequence[Order], shares: Sequence[float], seed: int, stream: str):
        self._orders = tuple(orders)
        self._seed = seed
        self._stream = stream
        self.quotas = quotas_of(shares)
        count = len(self._orders)
        if len(self.quotas) != count or not self.quotas.all():
            raise ValueError(f"{count} orders with {self.quotas.tolist()} positions")
        numbers = np.arange(count, dtype=np.int32)
        self._pattern = np.repeat(numbers, self.quotas)
        self._arranged = functools.lru_cache(maxsize=2)(self._arrange)

    def __len__(self) -> int:
        return sum(map(len, self._orders))

    def take(self, first: int, count: int) -> Dealt:
        dealt = Dealt.empty(count)
        chosen = self._chosen(first, count)
        starts = self._dealt_before(first)
        for number, order in enumerate(self._orders):
            target = np.flatnonzero(chosen == number)
            start = int(starts[number])
            rows, epochs = order.take(start, len(target))
            dealt.rows[target] = rows
            dealt.epochs[target] = epochs
        return dealt

    def _chosen(self, first: int, count: int) -> np.ndarray:
        """Return the number of the order at each of ``count`` positions, int32 [count]."""
        chosen = np.empty(count, dtype=np.int32)
        for stretch in _stretches(first, count, len(self._pattern)):
            arranged = self._arranged(stretch.number)
            chosen[stretch.target] = arranged[stretch.places]
        return chosen

    def _dealt_before(self, position: int) -> np.ndarray:
        """Return how many positions before this one belong to each order, int64 [orders]."""
        number, place = divmod(position, len(self._pattern))
        in_whole_patterns = number * self.quotas
        begun = self._arranged(number)[:place]
        in_this_pattern = np.bincount(begun, minlength=len(self._orders))
        return in_whole_patterns + in_this_pattern

    def _arrange(self, number: int) -> np.ndarray:
        """Return the number of the order at each position of a pattern."""
        length = len(self._pattern)
        key = seed_of(self._seed, self._stream, "mix", number)
        places = np.arange(length)
        return self._pattern[permute(places, length, key)]


def quotas_of(shares: Sequence[float]) -> np.ndarray:
    """Return how many positions of a pattern each of the ``shares`` has, int64.

    Shares are positive; a very small one may have no position. Quotas are by largest remainder: no
    quota is further than 1 from share * length. The pattern is the shortest of PATTERNS that gives
    each share at least MIN_QUOTA positions, else the longest.
    """
    wanted = np.asarray(shares, dtype=np.float64)
    valid = np.isfinite(wanted) & (wanted > 0)
    if not len(wanted) or not valid.all():
        raise ValueError(f"shares {list(shares)}")
    wanted /= wanted.sum()
    length = _pattern_length(float(wanted.min()))
    exact = wanted * length
    quotas = np.floor(exact).astype(np.int64)
    missing = length - int(quotas.sum())
    largest_remainders = np.argsort(quotas - exact, kind="stable")
    quotas[largest_remainders[:missing]] += 1
    return quotas


def _pattern_length(smallest: float) -> int:
    """Return the length of the pattern for a smallest share, a part of 1."""
    for length in PATTERNS:
        if smallest * length >= MIN_QUOTA:
            return length
    return PATTERNS[-1]


@dataclass(frozen=True)
class _Stretch:
    """The positions asked for that lie in one epoch (or pattern)."""

    number: int  # of the epoch
    places: np.ndarray  # within the epoch, int64
    target: slice  # where they stand among the positions asked for


def _stretches(first: int, count: int, length: int) -> Iterator[_Stretch]:
    """Cut ``count`` positions from ``first`` on into stretches of epochs of ``length``."""
    end = first + count
    number = first // length
    while number * length < end:
        epoch_start = number * length
        start = max(first, epoch_start)
        stop = min(end, epoch_start + length)
        places = np.arange(start, stop, dtype=np.int64) - epoch_start
        target = slice(start - first, stop - first)
        yield _Stretch(number, places, target)
        number += 1


def _refuse_empty(order: Order) -> None:
    if not len(order):
        raise ValueError("an order of no rows")
