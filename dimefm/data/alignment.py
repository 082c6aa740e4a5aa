"""Match raw rows with cached features by identity, and find the features of any usable row.

Identity is the shard's name, its number of rows and its keys; the order of files plays no part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.cache.skip_index import SkipIndex
from dimefm.data.matching import match_caches, match_shards
from dimefm.data.rows import Rows
from dimefm.data.views.patch_tokens import TokenPolicy, expect_rows, expect_tokens
from dimefm.errors import CacheError


@dataclass(frozen=True)
class Column:
    """Where one cache holds the features of each source shard.

    The cache has ``views`` rows for each source row, without the bad ones.
    """

    starts: np.ndarray  # [shards] first cache row
    bad: tuple[SkipIndex, ...]  # per shard: cached rows that are bad; of views, row * views + view
    views: int = 1
    tokens: bool = False  # the ``views`` rows are the tokens of one item

    def rows(
        self,
        shard: np.ndarray,
        row: np.ndarray,
        view: np.ndarray | int,
    ) -> np.ndarray:
        """Return the cache rows [n] of views [n] of source rows ``row`` [n] of shards [n].

        None of the source rows may be bad. A cache without views has its one row for any view, a
        cache of tokens gives the row of an item's first token.
        """
        cached = row * self.views
        if not self.tokens:
            cached = cached + view % self.views
        for number in np.unique(shard):
            if len(self.bad[number].skipped):
                in_shard = shard == number
                cached[in_shard] = self.bad[number].to_stored(cached[in_shard])
        return self.starts[shard] + cached

    def bad_source_rows(self, shard: int) -> np.ndarray:
        """Return the source rows of a shard of which some row is bad, with repetitions."""
        return self.bad[shard].skipped // self.views


@dataclass(frozen=True)
class Aligned:
    """Usable rows 0..len-1: the source rows that have features in every cache."""

    starts: np.ndarray  # [shards + 1] first usable row of each source shard
    source_starts: np.ndarray  # [shards] first source row
    unusable: tuple[SkipIndex, ...]  # per shard: its source rows that are not usable
    columns: tuple[Column, ...]  # one for each cache

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(
        self,
        usable: np.ndarray,
        view: np.ndarray | int = 0,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return where the usable rows ``usable`` [n] are.

        The result is (source rows, the cache rows of ``view`` in each cache), int64 [n] each.
        """
        shard = np.searchsorted(self.starts, usable, side="right") - 1
        row = usable - self.starts[shard]
        for number in np.unique(shard):
            if len(self.unusable[number].skipped):
                in_shard = shard == number
                row[in_shard] = self.unusable[number].to_source(row[in_shard])
        source_rows = self.source_starts[shard] + row
        cached = [column.rows(shard, row, view) for column in self.columns]
        return source_rows, cached


def align(rows: Rows, *caches: FeatureCache) -> Aligned:
    """Match every shard of ``rows`` with its shard of each of the ``caches``.

    The caches must have the same views. Raises CacheError when a shard is not in a cache, when
    counts differ, when a key differs (naming the row), or when a cache holds tokens.
    """
    expect_rows(caches)
    counts = [len(shard) for shard in rows.shards]
    matched = [match_shards(rows, cache) for cache in caches]
    return _aligned(counts, caches, matched)


def align_pairs(
    images: Rows,
    texts: Rows,
    image_caches: Sequence[FeatureCache],
    text_caches: Sequence[FeatureCache],
    *,
    image_tokens: Sequence[FeatureCache] = (),
    text_tokens: Sequence[FeatureCache] = (),
) -> Aligned:
    """Match pairs with caches of both kinds.

    The columns are those of the images, then those of the texts, then those of the images' tokens
    and of the texts' tokens.

    ``images`` and ``texts`` are one source, opened as either: some formats give their rows other
    keys then, but row i is row i. Raises CacheError as :func:`align` does, and when a cache of
    tokens holds rows.
    """
    expect_rows([*image_caches, *text_caches])
    expect_tokens([*image_tokens, *text_tokens])
    counts = [len(shard) for shard in images.shards]
    if counts != [len(shard) for shard in texts.shards]:
        raise CacheError(
            f"{images.shards[0].path}: image and text row counts differ. Fix: give pairs in one"
            " format"
        )
    sides = [
        (images, image_caches),
        (texts, text_caches),
        (images, image_tokens),
        (texts, text_tokens),
    ]
    every: list[FeatureCache] = []
    matched: list[list[int]] = []
    for rows, caches in sides:
        every.extend(caches)
        matched.extend(match_shards(rows, cache) for cache in caches)
    return _aligned(counts, every, matched)


def align_caches(first: FeatureCache, *further: FeatureCache) -> Aligned:
    """Match the shards of caches that were made from the same sources.

    The source rows are those of ``first``; every view of a text counts as one.

    Raises CacheError, naming the shard and the field, when a cache was made from other rows than
    ``first``, and for a cache of tokens.
    """
    expect_rows([first, *further])
    infos = first.manifest.shards
    counts = [info.source_rows for info in infos]
    matched = [list(range(len(infos)))]
    for cache in further:
        matched.append(match_caches(first, cache))
    return _aligned(counts, [first, *further], matched, views=1)


def _aligned(
    counts: list[int],
    caches: Sequence[FeatureCache],
    matched: list[list[int]],
    views: int | None = None,
) -> Aligned:
    """Return the rows that are good in all caches.

    Source shard i has ``counts[i]`` rows, and its features in cache c are in shard
    ``matched[c][i]``; there each source row has ``views`` rows, by default as many as the cache
    says.
    """
    columns = tuple(
        _column(cache, numbers, views) for cache, numbers in zip(caches, matched, strict=True)
    )
    usable_counts: list[int] = []
    unusable: list[SkipIndex] = []
    for shard, count in enumerate(counts):
        bad = [column.bad_source_rows(shard) for column in columns]
        rows = np.unique(np.concatenate(bad))
        unusable.append(SkipIndex(rows))
        usable_counts.append(count - len(rows))
    return Aligned(
        starts=_starts(usable_counts),
        source_starts=_starts(counts)[:-1],
        unusable=tuple(unusable),
        columns=columns,
    )


def _column(cache: FeatureCache, numbers: list[int], views: int | None) -> Column:
    """Return where ``cache`` holds the features of source shards: in its shards ``numbers``."""
    manifest = cache.manifest
    return Column(
        starts=cache.starts[numbers],
        bad=tuple(SkipIndex.from_rows(manifest.shards[number].bad) for number in numbers),
        views=views or manifest.views,
        tokens=TokenPolicy.from_manifest(manifest.how) is not None,
    )


def _starts(counts: list[int]) -> np.ndarray:
    """Return where each of several runs of rows begins and the last one ends, int64."""
    return np.array(list(itertools.accumulate(counts, initial=0)), dtype=np.int64)
