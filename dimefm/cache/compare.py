"""How two caches differ: in their manifests, in their rows, and in the vectors of common rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dimefm.cache.int8 import directions
from dimefm.cache.manifest import Manifest, differences
from dimefm.cache.reader import FeatureCache
from dimefm.cache.shard_info import ShardInfo
from dimefm.cache.skip_index import SkipIndex
from dimefm.runtime.text import first_few

ROWS = 4096  # common rows whose vectors are compared


@dataclass(frozen=True)
class Comparison:
    """What two caches have in common.

    ``same`` is whether their fingerprints are equal; ``fields`` and ``shards`` are what differs, in
    words. ``common`` rows are in both caches, ``compared`` of them were compared; the cosines are
    None when no vectors could be compared.
    """

    same: bool
    fields: list[str]
    shards: list[str]
    common: int
    compared: int
    min_cosine: float | None
    mean_cosine: float | None

    def describe(self) -> str:
        """Return a human-readable summary of a few lines."""
        lines = ["different fingerprints"]
        if self.same:
            lines = ["same fingerprint: the same rows, encoder and settings"]
        for line in (*self.fields, *self.shards):
            lines.append(f"  {line}")
        summary = f"{self.common:,} rows in both"
        if self.min_cosine is not None:
            summary += (
                f"; of {self.compared:,} compared, cosine at least {self.min_cosine:.6f}, mean"
                f" {self.mean_cosine:.6f}"
            )
        elif self.common:
            summary += "; their dimensions differ"
        lines.append(summary)
        return "\n".join(lines)


def compare(first: FeatureCache, second: FeatureCache, rows: int = ROWS) -> Comparison:
    """Compare two caches, and the vectors of ``rows`` evenly spaced common rows.

    A common row has the same source shard and the same row number in it.
    """
    first.verify()
    second.verify()
    first_fields = _fields(first.manifest)
    second_fields = _fields(second.manifest)
    fields = differences(first_fields, second_fields)
    shards = _shard_differences(first.manifest, second.manifest)
    first_rows, second_rows = _common_rows(first, second)
    common = len(first_rows)
    same = first.manifest.fingerprint == second.manifest.fingerprint
    if common == 0 or first.dim != second.dim:
        return Comparison(same, fields, shards, common, 0, None, None)
    most = min(rows, common)
    evenly_spaced = np.linspace(0, common - 1, most)
    chosen = np.unique(evenly_spaced.astype(np.int64))
    first_unit = directions(first[first_rows[chosen]])
    second_unit = directions(second[second_rows[chosen]])
    cosines = (first_unit * second_unit).sum(1)
    lowest = float(cosines.min())
    mean = float(cosines.mean())
    return Comparison(same, fields, shards, common, len(chosen), lowest, mean)


def _fields(manifest: Manifest) -> dict:
    """Return the fields to compare; a code differs as a whole and not number by number."""
    fields = manifest.header()
    if manifest.code is not None:
        fields["code"] = "int8 per dimension"
    del fields["effect"]
    return fields


def _shards_by_source(manifest: Manifest) -> dict[str, int]:
    """Return source name -> number of its shard."""
    return {shard.source: number for number, shard in enumerate(manifest.shards)}


def _shard_differences(first: Manifest, second: Manifest) -> list[str]:
    """Return in words how the shards of two caches differ."""
    first_numbers = _shards_by_source(first)
    second_numbers = _shards_by_source(second)
    only_first = [name for name in first_numbers if name not in second_numbers]
    only_second = [name for name in second_numbers if name not in first_numbers]
    lines = _only_in(only_first, "first")
    lines += _only_in(only_second, "second")
    for name, number in first_numbers.items():
        if name not in second_numbers:
            continue
        shard = first.shards[number]
        second_shard = second.shards[second_numbers[name]]
        lines += _changes(shard, second_shard)
    return lines


def _only_in(names: list[str], which: str) -> list[str]:
    if not names:
        return []
    count = len(names)
    shards = "shards" if count > 1 else "shard"
    few = first_few(names, 3)
    return [f"{count} {shards} only in the {which}: {few}"]


def _changes(first: ShardInfo, second: ShardInfo) -> list[str]:
    """Return in words what differs between two shards of one source."""
    source = first.source
    lines = []
    if first.source_rows != second.source_rows:
        lines.append(f"{source}: source_rows {first.source_rows} against {second.source_rows}")
    if first.source_digest != second.source_digest:
        first_digest = first.source_digest[:12]
        second_digest = second.source_digest[:12]
        lines.append(f"{source}: source_digest {first_digest} against {second_digest}")
    only_first = set(first.bad) - set(second.bad)
    only_second = set(second.bad) - set(first.bad)
    if only_first or only_second:
        lines.append(
            f"{source}: rows quarantined only in the first: {_few(only_first)}; only in the second:"
            f" {_few(only_second)}"
        )
    elif first.keys_sha256 != second.keys_sha256:
        lines.append(f"{source}: other keys")
    return lines


def _few(rows: set[int]) -> str:
    return first_few(sorted(rows), 4) or "none"


def _common_rows(first: FeatureCache, second: FeatureCache) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the common rows in each cache, int64 [n], in the order of the first."""
    second_numbers = _shards_by_source(second.manifest)
    first_parts = [np.empty(0, dtype=np.int64)]
    second_parts = [np.empty(0, dtype=np.int64)]
    for number, info in enumerate(first.manifest.shards):
        second_number = second_numbers.get(info.source)
        if second_number is None:
            continue
        second_info = second.manifest.shards[second_number]
        if info.source_rows != second_info.source_rows:
            continue
        source_rows = _rows_in_both(info, second_info)
        first_stored = SkipIndex.from_rows(info.bad).to_stored(source_rows)
        second_stored = SkipIndex.from_rows(second_info.bad).to_stored(source_rows)
        first_parts.append(first.starts[number] + first_stored)
        second_parts.append(second.starts[second_number] + second_stored)
    return np.concatenate(first_parts), np.concatenate(second_parts)


def _rows_in_both(first: ShardInfo, second: ShardInfo) -> np.ndarray:
    """Return the source rows that two shards of one source both hold, ascending."""
    bad = np.union1d(first.bad, second.bad)
    bad = bad.astype(np.int64)
    count = first.source_rows - len(bad)
    return SkipIndex(bad).to_source(np.arange(count))
