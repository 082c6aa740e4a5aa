"""Searching the nearest rows of a cache with faiss, exactly or in inverted lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.curate.neighbours.graph import Rule
from dimefm.data.pairing import rows_of
from dimefm.errors import CacheError
from dimefm.runtime.progress import Progress

if TYPE_CHECKING:
    import faiss

BLOCK = 2048  # rows that are searched at once
MARGIN = 16  # rows that are asked for beyond k, since some are excluded
DEEPEST = 2048  # nearest rows of one that are looked at
DIGITS = 6  # of a cosine that are told apart: float32 sums differ in the seventh
PER_LIST = 64  # rows that the centre of a list is trained on
HELD_OUT = 1000  # rows on which the recall is measured


@dataclass(frozen=True)
class Found:
    """Neighbours of n rows: ``ids`` [n, k] and ``cosines`` [n, k] (-1 and NaN where there are no
    more), nearest first; the cosine of the ``nearest`` row [n] of another key whatever its cosine,
    -inf where none was met; and which rows [n] are ``cut``: looked at DEEPEST rows and found fewer
    than k."""

    ids: np.ndarray
    cosines: np.ndarray
    nearest: np.ndarray
    cut: np.ndarray


class Searcher:
    """An index of all rows of a cache. ``leaders`` [rows] holds for each row the first of its shard
    that has its key.
    """

    def __init__(self, cache: FeatureCache, rule: Rule, quiet: bool = True):
        import faiss

        self.cache, self.rule = cache, rule
        self.facts: dict[str, Any] = dict(rule.fields(len(cache))["index"])
        held_out = None
        if self.facts["kind"] == "exact":
            self.index: faiss.Index = faiss.IndexFlatIP(cache.dim)
        else:
            self.index, held_out = self._lists(faiss)
        self.leaders = np.empty(len(cache), dtype=np.int64)
        with Progress(len(cache), "index", "row", quiet=quiet) as progress:
            for start, stop, rows in self._read():
                self.index.add(rows)
                progress.update(stop - start)
        if held_out is not None:
            self.facts |= {"recall_at_1": self._recall(held_out), "recall_rows": len(held_out)}

    def _lists(self, faiss: Any) -> tuple[faiss.Index, np.ndarray]:
        """Return a trained index of inverted lists, and numbers of rows that it was not trained
        on.
        """
        total = len(self.cache)
        lists, held = (
            max(1, min(4 * isqrt(total), total // (PER_LIST + MARGIN))),
            max(1, min(HELD_OUT, total // 10)),
        )
        drawn = np.random.default_rng(0).choice(
            total, min(lists * PER_LIST, total - held) + held, replace=False
        )
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(self.cache.dim), self.cache.dim, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.train(self.unit(np.sort(drawn[held:])))
        index.nprobe = min(self.rule.probes, lists)
        self.facts |= {"lists": lists, "probes": index.nprobe}
        return index, np.sort(drawn[:held])

    def _read(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (first row, end, unit rows) of the whole cache, shard by shard, and note the
        leaders.
        """
        cache, row = self.cache, 0
        for info in cache.manifest.shards:
            first: dict[str, int] = {}
            for keys, stored in cache.blocks(info):
                stop = row + len(keys)
                self.leaders[row:stop] = [
                    first.setdefault(row_key(key), row + i) for i, key in enumerate(keys)
                ]
                yield (
                    row,
                    stop,
                    _unit(
                        cache,
                        np.arange(row, stop),
                        stored if cache.code is None else cache.code.decode(stored),
                    ),
                )
                row = stop

    def unit(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by number at unit length, float32 [n, dim]; raise CacheError for one that has
        no direction.
        """
        return _unit(self.cache, rows, self.cache[rows])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the numbers of all rows, block by block."""
        return (
            np.arange(start, min(start + BLOCK, len(self.cache)))
            for start in range(0, len(self.cache), BLOCK)
        )

    def search(self, rows: np.ndarray) -> Found:
        """Return the neighbours of ``rows`` [n].

        Equal cosines (to DIGITS digits) are in the order of row numbers. A row of which too many of
        the nearest are excluded is searched again, deeper, down to DEEPEST.
        """
        queries, k, total = self.unit(rows), self.rule.k, len(self.cache)
        found = Found(
            np.full((len(rows), k), -1, dtype=np.int64),
            np.full((len(rows), k), np.nan, dtype=np.float32),
            np.full(len(rows), -np.inf, dtype=np.float32),
            np.zeros(len(rows), dtype=bool),
        )
        todo, depth = np.arange(len(rows)), min(k + MARGIN, total)
        while len(todo):
            cosines, ids = self.index.search(queries[todo], depth)
            cosines = np.round(np.clip(cosines, -1, 1), DIGITS)
            other = (ids >= 0) & (self.leaders[ids] != self.leaders[rows[todo], None])
            good = other & within(cosines, self.rule)
            found.nearest[todo] = np.where(other, cosines, -np.inf).max(1)
            found.ids[todo], found.cosines[todo] = _first(ids, cosines, good, k)
            more = (ids[:, -1] >= 0) & (cosines[:, -1] >= self.rule.min_cosine) & (depth < total)
            todo = todo[more & (good.sum(1) < k)]
            if depth == DEEPEST:
                found.cut[todo] = True
                break
            depth = min(depth * 4, DEEPEST, total)
        return found

    def _recall(self, rows: np.ndarray) -> float:
        """Return the share of ``rows`` with a neighbour whose nearest one the index finds, against
        all rows of the cache.
        """
        queries, best = self.unit(rows), np.full(len(rows), -np.inf, dtype=np.float32)
        for numbers in self.blocks():
            cosines = np.round(np.clip(queries @ self.unit(numbers).T, -1, 1), DIGITS)
            good = within(cosines, self.rule) & (self.leaders[numbers] != self.leaders[rows, None])
            best = np.maximum(best, np.where(good, cosines, -np.inf).max(1))
        found = self.search(rows).cosines[:, 0]
        some = np.isfinite(best)
        return float((found[some] >= best[some] - 10.0**-DIGITS * 2).mean()) if some.any() else 1.0


def row_key(key: str) -> str:
    """Return what all sentences or views of one row have as their key: ``key`` without any ``#``
    and number at its end.
    """
    if "#" not in key:
        return key
    *_, shortest = rows_of(key)
    return shortest


def within(cosines: np.ndarray, rule: Rule) -> np.ndarray:
    """Say which cosines are those of a neighbour."""
    return (cosines >= rule.min_cosine) & (cosines <= rule.max_cosine)


def _first(
    ids: np.ndarray, cosines: np.ndarray, good: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k good ids [n, k] and cosines, by falling cosine and then row number; -1 and
    NaN behind them.
    """
    order = np.lexsort((ids, np.where(good, -cosines, np.inf)), axis=-1)[:, :k]
    ids, cosines, good = (
        np.take_along_axis(values, order, axis=1) for values in (ids, cosines, good)
    )
    room = ((0, 0), (0, k - ids.shape[1]))
    return (
        np.pad(np.where(good, ids, -1), room, constant_values=-1),
        np.pad(np.where(good, cosines, np.nan), room, constant_values=np.nan),
    )


def _unit(cache: FeatureCache, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        info, inside = cache.locate(int(numbers[wrong[0]]))
        raise CacheError(
            f"{cache.store.where(info.file)}, row {inside}: its length is"
            f" {float(lengths[wrong[0], 0])}, so it has no direction and no neighbours; extract the"
            " shard again"
        )
    return rows / lengths
