"""Searching the nearest rows of a cache with faiss, exactly or in inverted lists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.curate.neighbours.graph import Rule
from dimefm.data.pairing import rows_of
from dimefm.errors import CacheError
from dimefm.runtime.progress import Progress
from dimefm.runtime.vectors import row_without_direction, unit_rows

BLOCK = 2048  # rows that are searched at once
MARGIN = 16  # rows that are asked for beyond k, since some are excluded
DEEPEST = 2048  # most nearest rows that are examined for one row
DIGITS = 6  # decimals of a cosine: float32 sums differ in the seventh
PER_LIST = 64  # rows that the center of a list is trained on
HELD_OUT = 1000  # rows on which the recall is measured


@dataclass(frozen=True)
class SearchResult:
    """Neighbours of n rows.

    ``ids`` [n, k] and ``cosines`` [n, k] are in the order of falling cosine, -1 and NaN where there
    are no more. ``nearest`` [n] is the cosine of the nearest row of another key, inside the window
    or not, -inf where the search met none. ``cut`` [n] marks rows for which DEEPEST rows were
    examined and fewer than k are neighbours.
    """

    ids: np.ndarray
    cosines: np.ndarray
    nearest: np.ndarray
    cut: np.ndarray

    @staticmethod
    def empty(n: int, k: int) -> SearchResult:
        """Return the result for n rows before any neighbour is known."""
        return SearchResult(
            ids=np.full((n, k), -1, dtype=np.int64),
            cosines=np.full((n, k), np.nan, dtype=np.float32),
            nearest=np.full(n, -np.inf, dtype=np.float32),
            cut=np.zeros(n, dtype=bool),
        )


def import_faiss() -> Any:
    """Return the module faiss; raise CacheError when it is not installed."""
    try:
        with warnings.catch_warnings():
            # of SWIG and numpy, in older builds; as errors they would crash the import
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise CacheError(
            f"faiss, which finds neighbours, cannot be imported ({error}). Fix: pip install"
            " faiss-cpu"
        ) from error
    return faiss


class Searcher:
    """An index of all rows of a cache.

    ``take_keys`` gets the keys of all rows, block by block, while the index is made. ``leaders``
    [rows] holds for each row the first row of its shard with the same key. ``facts`` describe the
    index, for the record.
    """

    def __init__(
        self,
        cache: FeatureCache,
        rule: Rule,
        quiet: bool = True,
        take_keys: Callable[[list[str]], None] | None = None,
    ):
        faiss = import_faiss()
        self._take_keys = take_keys
        self.cache = cache
        self.rule = rule
        fields = rule.fields(len(cache))
        self.facts: dict[str, Any] = dict(fields["index"])
        held_out = None
        if self.facts["kind"] == "exact":
            self.index: Any = faiss.IndexFlatIP(cache.dim)
        else:
            self.index, held_out = self._train_lists(faiss)
        self.leaders = np.empty(len(cache), dtype=np.int64)
        with Progress(len(cache), "index", "row", quiet=quiet) as progress:
            for rows in self._read():
                self.index.add(rows)
                progress.update(len(rows))
        if held_out is not None:
            self.facts["recall_at_1"] = self._recall(held_out)
            self.facts["recall_rows"] = len(held_out)

    def _train_lists(self, faiss: Any) -> tuple[Any, np.ndarray]:
        """Return a trained index of inverted lists, and row numbers that it was not trained on."""
        total = len(self.cache)
        dim = self.cache.dim
        most_lists = total // (PER_LIST + MARGIN)
        lists = min(4 * isqrt(total), most_lists)
        lists = max(1, lists)
        held_out = min(HELD_OUT, total // 10)
        held_out = max(1, held_out)
        trained_on = min(lists * PER_LIST, total - held_out)
        generator = np.random.default_rng(0)
        drawn = generator.choice(total, trained_on + held_out, replace=False)
        coarse = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFFlat(coarse, dim, lists, faiss.METRIC_INNER_PRODUCT)
        training_rows = np.sort(drawn[held_out:])
        index.train(self.unit(training_rows))
        index.nprobe = min(self.rule.probes, lists)
        self.facts["lists"] = lists
        self.facts["probes"] = index.nprobe
        return index, np.sort(drawn[:held_out])

    def _read(self) -> Iterator[np.ndarray]:
        """Yield the rows of the whole cache in blocks, at unit length, and fill ``leaders``."""
        cache = self.cache
        start = 0
        for info in cache.manifest.shards:
            first_with_key: dict[str, int] = {}
            for keys, rows in cache.blocks(info):
                if self._take_keys is not None:
                    self._take_keys(keys)
                leaders = []
                for number, key in enumerate(keys, start):
                    leader = first_with_key.setdefault(row_key(key), number)
                    leaders.append(leader)
                stop = start + len(keys)
                self.leaders[start:stop] = leaders
                if cache.code is not None:
                    rows = cache.code.decode(rows)
                numbers = np.arange(start, stop)
                yield _unit(cache, numbers, rows)
                start = stop

    def unit(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by number at unit length, float32 [n, dim].

        Raises CacheError for a row whose length is 0 or not finite.
        """
        return _unit(self.cache, rows, self.cache[rows])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the numbers of all rows, block by block."""
        total = len(self.cache)
        for start in range(0, total, BLOCK):
            stop = min(start + BLOCK, total)
            yield np.arange(start, stop)

    def search(self, rows: np.ndarray) -> SearchResult:
        """Return the neighbours of ``rows`` [n].

        Equal cosines (to DIGITS decimals) are in the order of row numbers. When too many of a row's
        nearest rows are excluded, it is searched again, deeper, down to DEEPEST.
        """
        k = self.rule.k
        total = len(self.cache)
        queries = self.unit(rows)
        result = SearchResult.empty(len(rows), k)
        todo = np.arange(len(rows))  # places in ``rows``
        depth = min(k + MARGIN, total)
        while len(todo):
            cosines, ids = self.index.search(queries[todo], depth)
            cosines = _rounded(cosines)
            leaders = self.leaders[rows[todo]]
            has_other_key = self.leaders[ids] != leaders[:, None]
            candidate = (ids >= 0) & has_other_key
            good = candidate & within(cosines, self.rule)
            candidate_cosines = np.where(candidate, cosines, -np.inf)
            result.nearest[todo] = candidate_cosines.max(1)
            first_ids, first_cosines = _first(ids, cosines, good, k)
            result.ids[todo] = first_ids
            result.cosines[todo] = first_cosines

            last_is_row = ids[:, -1] >= 0
            last_is_inside = cosines[:, -1] >= self.rule.min_cosine
            lacks_some = good.sum(1) < k
            search_again = last_is_row & last_is_inside & (depth < total) & lacks_some
            todo = todo[search_again]
            if depth == DEEPEST:
                result.cut[todo] = True
                break
            depth = min(depth * 4, DEEPEST, total)
        return result

    def _recall(self, rows: np.ndarray) -> float:
        """Return the recall at 1: how many nearest neighbours of ``rows`` the index finds.

        It is a fraction of the rows that have a neighbour; the truth is a comparison with all rows.
        """
        queries = self.unit(rows)
        leaders = self.leaders[rows]
        best = np.full(len(rows), -np.inf, dtype=np.float32)
        for numbers in self.blocks():
            block = self.unit(numbers)
            cosines = _rounded(queries @ block.T)
            has_other_key = self.leaders[numbers] != leaders[:, None]
            good = within(cosines, self.rule) & has_other_key
            good_cosines = np.where(good, cosines, -np.inf)
            best = np.maximum(best, good_cosines.max(1))
        has_neighbour = np.isfinite(best)
        if not has_neighbour.any():
            return 1.0
        searched = self.search(rows).cosines[:, 0]
        tolerance = 10.0**-DIGITS * 2
        lowest = best - tolerance
        is_found = searched[has_neighbour] >= lowest[has_neighbour]
        return float(is_found.mean())


def row_key(key: str) -> str:
    """Return the key that all views or sentences of one row share.

    It is ``key`` without every ``#NUMBER`` at its end.
    """
    if "#" not in key:
        return key
    *_, shortest = rows_of(key)
    return shortest


def within(cosines: np.ndarray, rule: Rule) -> np.ndarray:
    """Return which cosines lie in the window of ``rule``."""
    is_above = cosines >= rule.min_cosine
    is_below = cosines <= rule.max_cosine
    return is_above & is_below


def _rounded(cosines: np.ndarray) -> np.ndarray:
    """Return inner products of unit rows as cosines: inside -1 to 1, of DIGITS decimals."""
    clipped = np.clip(cosines, -1, 1)
    return np.round(clipped, DIGITS)


def _first(
    ids: np.ndarray,
    cosines: np.ndarray,
    good: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k good ids [n, k] and cosines [n, k], by falling cosine, then row number.

    Places without a neighbour have -1 and NaN.
    """
    sort_value = np.where(good, -cosines, np.inf)
    order = np.lexsort((ids, sort_value), axis=-1)
    order = order[:, :k]
    ids = np.take_along_axis(ids, order, axis=1)
    cosines = np.take_along_axis(cosines, order, axis=1)
    good = np.take_along_axis(good, order, axis=1)
    ids = np.where(good, ids, -1)
    cosines = np.where(good, cosines, np.nan)
    columns = k - ids.shape[1]
    missing = ((0, 0), (0, columns))
    padded_ids = np.pad(ids, missing, constant_values=-1)
    padded_cosines = np.pad(cosines, missing, constant_values=np.nan)
    return padded_ids, padded_cosines


def _unit(cache: FeatureCache, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return ``rows`` [n, dim], which have these ``numbers`` in the cache, at unit length."""
    rows = np.asarray(rows, dtype=np.float32)
    unusable = row_without_direction(rows)
    if unusable is not None:
        first, length = unusable
        info, row = cache.locate(int(numbers[first]))
        where = cache.store.where(info.file)
        raise CacheError(
            f"{where}, row {row}: its length is {length}, so it has no direction and no"
            " neighbours. Fix: extract the shard again"
        )
    return unit_rows(rows, eps=0)
