"""Matching raw rows with cached features by identity: shard name, row count and keys; never by luck of sorting."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache, ShardInfo
from dimefm.cache.files import sha256_keys
from dimefm.data.rows import Rows, Shard
from dimefm.errors import CacheError


@dataclass(frozen=True)
class Aligned:
    """Usable rows 0..len-1, each a raw row and its feature row; quarantined rows are left out."""

    starts: np.ndarray  # [shards + 1] first usable row of each raw shard
    raw_starts: np.ndarray  # [shards] first raw row
    cache_starts: np.ndarray  # [shards] first cache row
    holes: tuple[np.ndarray, ...]  # per shard: kept rows before each bad row

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (raw rows, cache rows), both int64 [n], of usable row numbers [n]."""
        shard = np.searchsorted(self.starts, usable, side="right") - 1
        local = usable - self.starts[shard]
        raw = local.copy()
        for number in np.unique(shard):
            here = shard == number
            raw[here] += np.searchsorted(self.holes[number], local[here], side="right")
        return self.raw_starts[shard] + raw, self.cache_starts[shard] + local


def align(rows: Rows, cache: FeatureCache) -> Aligned:
    """Match every shard of ``rows`` with its shard of ``cache``.

    Raises CacheError when a shard is not in the cache, when counts differ, or when a key differs, naming the row.
    """
    matched = [_match(shard, cache) for shard in rows.shards]
    twice = next((number for number in matched if matched.count(number) > 1), None)
    if twice is not None:
        ours = [str(shard.path) for shard, number in zip(rows.shards, matched, strict=True) if number == twice]
        raise CacheError(
            f"{ours[0]} and {ours[1]} both match {cache.manifest.shards[twice].source} in {cache.root}; "
            "give the --dataroot that the extraction had"
        )
    infos = [cache.manifest.shards[number] for number in matched]
    bad = [np.array(info.bad, dtype=np.int64) for info in infos]
    return Aligned(
        starts=np.array(list(itertools.accumulate((info.rows for info in infos), initial=0)), dtype=np.int64),
        raw_starts=np.array(rows.starts[:-1], dtype=np.int64),
        cache_starts=cache.starts[matched],
        holes=tuple(rows_bad - np.arange(len(rows_bad)) for rows_bad in bad),
    )


def _match(shard: Shard, cache: FeatureCache) -> int:
    infos = cache.manifest.shards
    named = [i for i, info in enumerate(infos) if _same_name(shard.name, info.source)]
    if not named:
        raise CacheError(
            f"{shard.path}: the cache {cache.root} has no features for a shard named {shard.name} (it holds "
            f"{', '.join(info.source for info in infos[:4])}{', ...' if len(infos) > 4 else ''}); "
            "extract this source too, or give the --dataroot that the extraction had"
        )
    counted = [i for i in named if infos[i].source_rows == len(shard)]
    if not counted:
        raise CacheError(
            f"{shard.path}: {len(shard)} rows, but the features in {cache.root} were made from "
            f"{infos[named[0]].source_rows}; the source has changed, extract it again"
        )
    keys = shard.keys()
    equal = [number for number in counted if _has_keys(infos[number], keys)]
    exact = [number for number in equal if infos[number].source == shard.name]
    if len(exact or equal) > 1:
        raise CacheError(
            f"{shard.path}: could be {' or '.join(infos[number].source for number in equal)} in {cache.root}, which have "
            "the same keys; give the --dataroot that the extraction had"
        )
    if equal:
        return _same_content(shard, cache, (exact or equal)[0])
    raise CacheError(_first_difference(shard, keys, cache, infos[counted[0]]))


def _same_content(shard: Shard, cache: FeatureCache, number: int) -> int:
    """Return ``number`` if the shard is what the features were made from, also where keys are only line numbers."""
    recorded = cache.manifest.shards[number].source_digest
    found = shard.digest() if recorded else ""
    if found != recorded:
        raise CacheError(
            f"{shard.path}: its content has digest {found[:12]}, the features in {cache.root} were made from "
            f"{recorded[:12]}; the source has changed since, extract it again"
        )
    return number


def _has_keys(info: ShardInfo, keys: list[str]) -> bool:
    bad = set(info.bad)
    kept = [key for row, key in enumerate(keys) if row not in bad] if bad else keys
    return sha256_keys(kept) == info.keys_sha256


def _same_name(ours: str, theirs: str) -> bool:
    return ours == theirs or ours.endswith("/" + theirs) or theirs.endswith("/" + ours)


def _first_difference(shard: Shard, keys: list[str], cache: FeatureCache, info: ShardInfo) -> str:
    stored, _ = cache.read(info)
    bad = set(info.bad)
    kept = [row for row in range(len(keys)) if row not in bad]
    row = next(row for row, theirs in zip(kept, stored, strict=True) if keys[row] != theirs)
    theirs = stored[kept.index(row)]
    return (
        f"{shard.path}, row {row}: the raw row has key '{keys[row]}', its feature row in {cache.root} ({info.file}) has "
        f"'{theirs}'; the two are not the same rows: extract the features again"
    )
