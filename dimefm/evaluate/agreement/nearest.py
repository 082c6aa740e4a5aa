"""Rows of image caches that are close to given embeddings, found block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.runtime.progress import Progress
from dimefm.runtime.vectors import unit_rows

KEPT = 5
"""Rows that are kept for each embedding, those with the highest cosines."""

CACHED_AT_ONCE = 4096
QUERIES_AT_ONCE = 2048
DIGITS = 6
"""Decimals of a cosine: float32 sums differ in the seventh."""

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Place:
    """A cached row: the number of its cache, its source, and its key."""

    cache: int
    source: str
    key: str


class Matches:
    """What is found for n embeddings.

    ``nearest`` float32 [n] is the highest cosine with any cached row, ``counts`` int64 [n] how many
    rows have a cosine of ``threshold`` or more. ``cosines`` [n, KEPT] and ``places`` [n, KEPT] are
    the first of these rows by falling cosine, then in the order of the caches; -inf and None where
    there are no more.
    """

    def __init__(self, n: int, threshold: float):
        self.threshold = np.float32(threshold)
        self.nearest = np.full(n, -np.inf, dtype=np.float32)
        self.counts = np.zeros(n, dtype=np.int64)
        self.cosines = np.full((n, KEPT), -np.inf, dtype=np.float32)
        self.places = np.full((n, KEPT), None, dtype=object)

    def add(self, first: int, cosines: np.ndarray, places: Sequence[Place]) -> None:
        """Add the cosines [q, b] of the embeddings from ``first`` on with b cached rows."""
        rows = slice(first, first + len(cosines))
        is_close = cosines >= self.threshold
        self.nearest[rows] = np.maximum(self.nearest[rows], cosines.max(axis=1))
        in_block = is_close.sum(axis=1)
        self.counts[rows] += in_block
        for query in np.flatnonzero(in_block):
            columns = np.flatnonzero(is_close[query])
            self._keep(first + query, cosines[query, columns], columns, places)

    def select(self, rows: slice) -> Matches:
        """Return what is found for some of the embeddings."""
        part = Matches(0, float(self.threshold))
        part.nearest = self.nearest[rows]
        part.counts = self.counts[rows]
        part.cosines = self.cosines[rows]
        part.places = self.places[rows]
        return part

    def _keep(
        self, number: int, cosines: np.ndarray, columns: np.ndarray, places: Sequence[Place]
    ) -> None:
        """Keep the best of those that one embedding has had so far and the new ones."""
        best = np.argsort(-cosines, kind="stable")[:KEPT]
        all_cosines = np.concatenate([self.cosines[number], cosines[best]])
        all_places = [*self.places[number], *(places[column] for column in columns[best])]
        order = np.argsort(-all_cosines, kind="stable")[:KEPT]
        self.cosines[number] = all_cosines[order]
        for place, taken in enumerate(order):
            self.places[number, place] = all_places[taken]


def close_rows(
    embeddings: np.ndarray,
    caches: Sequence[FeatureCache],
    threshold: float,
    *,
    quiet: bool = True,
) -> Matches:
    """Return the cached rows whose cosine with an embedding [n, D] is ``threshold`` or more.

    All rows are compared, none is skipped. Each cache is read once, in blocks, so memory does not
    grow with the caches. Raises CacheError for a cache that is damaged.
    """
    queries = unit_rows(np.asarray(embeddings, dtype=np.float32), eps=TINY)
    matches = Matches(len(queries), threshold)
    total = sum(len(cache) for cache in caches)
    with Progress(total, "compare", "row", quiet=quiet) as bar:
        for number, cache in enumerate(caches):
            for places, rows in _blocks(number, cache):
                for first in range(0, len(queries), QUERIES_AT_ONCE):
                    block = queries[first : first + QUERIES_AT_ONCE]
                    cosines = np.clip(np.round(block @ rows.T, DIGITS), -1, 1)
                    matches.add(first, cosines, places)
                bar.update(len(rows))
    return matches


def _blocks(number: int, cache: FeatureCache) -> Iterator[tuple[list[Place], np.ndarray]]:
    """Yield the rows of a cache at unit length, float32 [b, D], and their places."""
    for info in cache.manifest.shards:
        for keys, stored in cache.blocks(info):
            for first in range(0, len(keys), CACHED_AT_ONCE):
                end = first + CACHED_AT_ONCE
                rows = stored[first:end]
                if cache.code is not None:
                    rows = cache.code.decode(rows)
                places = [Place(number, info.source, key) for key in keys[first:end]]
                yield places, unit_rows(np.asarray(rows, dtype=np.float32), eps=TINY)
