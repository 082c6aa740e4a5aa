"""Matching raw rows with cached features by identity: shard name, row count and keys; never by luck
of sorting.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache, ShardInfo
from dimefm.data.rows import Rows, Shard
from dimefm.data.views.image_views import ViewPolicy, row_keys
from dimefm.data.views.patch_tokens import TokenPolicy, expect_rows, expect_tokens
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError
from dimefm.storage.files import sha256_keys

AS_THEN = (  # what must be as it was at the extraction, besides the source itself
    "--rows, --split and --limit"
)


@dataclass(frozen=True)
class Column:
    """Where one cache holds the rows of each source shard: ``views`` rows of each source row,
    without its bad ones.
    """

    starts: np.ndarray  # [shards] first cache row
    bad: tuple[
        np.ndarray, ...
    ]  # per shard: rows that are not there, ascending; of views, row * views + view
    views: int = 1
    tokens: bool = False  # the ``views`` rows are the tokens of one item

    def rows(self, shard: np.ndarray, row: np.ndarray, view: np.ndarray | int) -> np.ndarray:
        """Return the cache rows [n] of views [n] of the source rows ``row`` [n], none of them bad,
        of the shards [n].

        A cache without views has its one row for any view, a cache of tokens that of an item's
        first token.
        """
        found = row * self.views + (0 if self.tokens else view % self.views)
        for number in np.unique(shard):
            here = shard == number
            found[here] -= np.searchsorted(self.bad[number], found[here])
        return self.starts[shard] + found


@dataclass(frozen=True)
class Aligned:
    """Usable rows 0..len-1: source rows with features in every cache; rows that one of them lacks
    are left out.
    """

    starts: np.ndarray  # [shards + 1] first usable row of each source shard
    source_starts: np.ndarray  # [shards] first source row
    holes: tuple[np.ndarray, ...]  # per shard: usable rows before each unusable one
    columns: tuple[Column, ...]  # one for each cache

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(
        self, usable: np.ndarray, view: np.ndarray | int = 0
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return (source rows, the cache rows of ``view`` in each cache), int64 [n] each, of usable
        row numbers [n].
        """
        shard = np.searchsorted(self.starts, usable, side="right") - 1
        row = usable - self.starts[shard]
        for number in np.unique(shard):
            here = shard == number
            row[here] += np.searchsorted(self.holes[number], row[here], side="right")
        return self.source_starts[shard] + row, [
            column.rows(shard, row, view) for column in self.columns
        ]


def align(rows: Rows, *caches: FeatureCache) -> Aligned:
    """Match every shard of ``rows`` with its shard of each of the ``caches``, which have the same
    views.

    Raises CacheError when a shard is not in a cache, when counts differ, when a key differs, naming
    the row, or when a cache holds tokens.
    """
    expect_rows(caches)
    return _aligned(
        [len(shard) for shard in rows.shards], caches, [_matches(rows, cache) for cache in caches]
    )


def align_pairs(
    images: Rows,
    texts: Rows,
    image_caches: Sequence[FeatureCache],
    text_caches: Sequence[FeatureCache],
    *,
    image_tokens: Sequence[FeatureCache] = (),
    text_tokens: Sequence[FeatureCache] = (),
) -> Aligned:
    """Match pairs with caches of both kinds; the columns are those of the images, then those of the
    sentences, then those of their tokens.

    ``images`` and ``texts`` are one source, opened as either: some formats give their rows other
    keys then, but row i is row i. Raises CacheError as :func:`align` does, and when a cache of
    tokens holds rows.
    """
    expect_rows([*image_caches, *text_caches])
    expect_tokens([*image_tokens, *text_tokens])
    parts = (image_caches, text_caches, image_tokens, text_tokens)
    every = list(itertools.chain(*parts))
    counts = [len(shard) for shard in images.shards]
    if counts != [len(shard) for shard in texts.shards]:
        raise CacheError(
            f"{images.shards[0].path}: has other rows as images than as sentences; give pairs in"
            " one format"
        )
    of = [rows for rows, caches in zip((images, texts) * 2, parts, strict=True) for _ in caches]
    return _aligned(
        counts, every, [_matches(rows, cache) for rows, cache in zip(of, every, strict=True)]
    )


def align_caches(first: FeatureCache, *others: FeatureCache) -> Aligned:
    """Match the shards of caches that were made from the same sources; the source rows are those of
    ``first``, of text views every view is one.

    Raises CacheError, naming the shard and the field, when one was made from other rows than
    ``first``, and for a cache of tokens.
    """
    expect_rows([first, *others])
    infos = first.manifest.shards
    matched = [list(range(len(infos))), *(_same_sources(first, other) for other in others)]
    return _aligned([info.source_rows for info in infos], [first, *others], matched, views=1)


def _aligned(
    counts: list[int],
    caches: Sequence[FeatureCache],
    matched: list[list[int]],
    views: int | None = None,
) -> Aligned:
    """Return the rows that are good in all caches; source shard i has ``counts[i]`` rows, its
    features in cache c stand in shard ``matched[c][i]``, and each has ``views`` rows there, by
    default as many as the cache says.
    """
    columns = []
    for cache, numbers in zip(caches, matched, strict=True):
        bad = tuple(
            np.array(cache.manifest.shards[number].bad, dtype=np.int64) for number in numbers
        )
        tokens = TokenPolicy.from_manifest(cache.manifest.how) is not None
        columns.append(Column(cache.starts[numbers], bad, views or cache.manifest.views, tokens))
    unusable = [
        np.unique(np.concatenate([column.bad[shard] // column.views for column in columns]))
        for shard in range(len(counts))
    ]
    usable = (count - len(rows) for count, rows in zip(counts, unusable, strict=True))
    return Aligned(
        starts=np.array(list(itertools.accumulate(usable, initial=0)), dtype=np.int64),
        source_starts=np.array(list(itertools.accumulate(counts, initial=0))[:-1], dtype=np.int64),
        holes=tuple(rows - np.arange(len(rows)) for rows in unusable),
        columns=tuple(columns),
    )


def _same_sources(first: FeatureCache, other: FeatureCache) -> list[int]:
    """Return the shard of ``other`` that was made from the source of each shard of ``first``."""
    theirs = {info.source: number for number, info in enumerate(other.manifest.shards)}
    ours = [info.source for info in first.manifest.shards]
    single = next(iter(sorted(set(ours) ^ set(theirs))), None)
    if single is not None:
        has, lacks = (other, first) if single in theirs else (first, other)
        raise CacheError(
            f"{has.store} has a shard of source {single}, {lacks.store} has none; the teachers of"
            " one run need features of the same sentences: extract the same sources with both"
        )
    for info in first.manifest.shards:
        _same_rows(first, info, other, other.manifest.shards[theirs[info.source]])
    return [theirs[source] for source in ours]


def _same_rows(
    first: FeatureCache, ours: ShardInfo, other: FeatureCache, theirs: ShardInfo
) -> None:
    """Raise CacheError, naming the field, when two shards of one source's name were made from other
    rows.
    """
    fields = ["source_rows"]
    fields += ["source_digest"] if ours.source_digest and theirs.source_digest else []
    fields += ["keys_sha256"] if ours.bad == theirs.bad else []
    for name in fields:
        a, b = getattr(ours, name), getattr(theirs, name)
        if a != b:
            raise CacheError(
                f"{first.store} and {other.store}: shard {ours.source} has {name} {a} in one, {b}"
                " in the other; the teachers of one run need features of the same sentences:"
                " extract them again with both"
            )
    if ours.bad != theirs.bad and not (ours.source_digest and theirs.source_digest):
        here, there = _key_of_row(first, ours), _key_of_row(other, theirs)
        row = next((row for row in here.keys() & there.keys() if here[row] != there[row]), None)
        if row is not None:
            raise CacheError(
                f"{first.store} and {other.store}: row {row} of shard {ours.source} has key"
                f" '{here[row]}' in one, '{there[row]}' in the other; extract them again with both"
                " teachers"
            )


def _key_of_row(cache: FeatureCache, info: ShardInfo) -> dict[int, str]:
    """Return source row -> key of the rows that a shard holds."""
    bad = set(info.bad)
    return dict(
        zip(
            (row for row in range(info.source_rows) if row not in bad),
            cache.read(info)[0],
            strict=True,
        )
    )


def _matches(rows: Rows, cache: FeatureCache) -> list[int]:
    """Return the shard of ``cache`` that holds the features of each shard of ``rows``."""
    how = cache.manifest.how
    policy = (
        ViewPolicy.from_manifest(how)
        or TextPolicy.from_manifest(how)
        or TokenPolicy.from_manifest(how)
    )
    matched = [_match(shard, cache, policy) for shard in rows.shards]
    twice = next((number for number in matched if matched.count(number) > 1), None)
    if twice is not None:
        ours = [
            str(shard.path)
            for shard, number in zip(rows.shards, matched, strict=True)
            if number == twice
        ]
        raise CacheError(
            f"{ours[0]} and {ours[1]} both match {cache.manifest.shards[twice].source} in"
            f" {cache.store}; give the --dataroot that the extraction had"
        )
    return matched


def _match(
    shard: Shard, cache: FeatureCache, policy: ViewPolicy | TextPolicy | TokenPolicy | None
) -> int:
    infos, views = cache.manifest.shards, cache.manifest.views
    named = [i for i, info in enumerate(infos) if same_name(shard.name, info.source)]
    if not named:
        raise CacheError(
            f"{shard.path}: the cache {cache.store} has no features for a shard named {shard.name}"
            " (it holds"
            f" {', '.join(info.source for info in infos[:4])}{', ...' if len(infos) > 4 else ''});"
            f" extract this source too, or give the --dataroot, {AS_THEN} that the extraction had"
        )
    counted = [i for i in named if infos[i].source_rows == len(shard) * views]
    if not counted:
        raise CacheError(
            f"{shard.path}: {len(shard)} rows, but the features in {cache.store} were made from"
            f" {infos[named[0]].source_rows // views}; give the {AS_THEN} that the extraction had;"
            " or the source has changed, extract it again"
        )
    keys = row_keys(shard.keys(), policy)
    equal = [number for number in counted if _has_keys(infos[number], keys)]
    exact = [number for number in equal if infos[number].source == shard.name]
    if len(exact or equal) > 1:
        raise CacheError(
            f"{shard.path}: could be {' or '.join(infos[number].source for number in equal)} in"
            f" {cache.store}, which have the same keys; give the --dataroot that the extraction had"
        )
    if equal:
        return _same_content(shard, cache, (exact or equal)[0])
    raise CacheError(_first_difference(shard, keys, cache, infos[counted[0]]))


def _same_content(shard: Shard, cache: FeatureCache, number: int) -> int:
    """Return ``number`` if the shard is what the features were made from, or was packed from it,
    also where keys are only line numbers."""
    recorded = cache.manifest.shards[number].source_digest
    found = shard.digests() if recorded else ("",)
    if recorded not in found:
        raise CacheError(
            f"{shard.path}: its content has digest {found[-1][:12]}, the features in {cache.store}"
            f" were made from {recorded[:12]}; give the {AS_THEN} that the extraction had; or the"
            " source has changed since, extract it again"
        )
    return number


def _has_keys(info: ShardInfo, keys: list[str]) -> bool:
    bad = set(info.bad)
    kept = [key for row, key in enumerate(keys) if row not in bad] if bad else keys
    return sha256_keys(kept) == info.keys_sha256


def same_name(ours: str, theirs: str) -> bool:
    """Say whether two shard names may be one shard's, seen from two data roots."""
    return ours == theirs or ours.endswith("/" + theirs) or theirs.endswith("/" + ours)


def _first_difference(shard: Shard, keys: list[str], cache: FeatureCache, info: ShardInfo) -> str:
    stored, _ = cache.read(info)
    bad = set(info.bad)
    kept = [row for row in range(len(keys)) if row not in bad]
    row = next(row for row, theirs in zip(kept, stored, strict=True) if keys[row] != theirs)
    theirs = stored[kept.index(row)]
    return (
        f"{shard.path}, row {row // cache.manifest.views}: the raw row has key '{keys[row]}', its"
        f" feature row in {cache.store} ({info.file}) has '{theirs}'; the two are not the same"
        f" rows: give the {AS_THEN} that the extraction had, or extract the features again"
    )
