"""How two caches differ: in what they say of themselves, in their rows, and in the vectors of the
rows that both have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dimefm.cache.manifest import Manifest, differences
from dimefm.cache.reader import FeatureCache
from dimefm.cache.shard_info import ShardInfo

ROWS = 4096  # common rows whose vectors are compared


@dataclass(frozen=True)
class Comparison:
    """``fields`` and ``shards`` that differ, in words; cosines of ``compared`` common rows, None
    where dims differ.
    """

    same: bool
    fields: list[str]
    shards: list[str]
    common: int
    compared: int
    min_cosine: float | None
    mean_cosine: float | None

    def describe(self) -> str:
        """Return a few lines for people."""
        lines = [
            (
                "same fingerprint: the same rows, encoder and settings"
                if self.same
                else "different fingerprints"
            )
        ]
        lines += [f"  {line}" for line in (*self.fields, *self.shards)]
        if self.min_cosine is not None:
            lines.append(
                f"{self.common:,} rows in both; of {self.compared:,} compared, cosine at least"
                f" {self.min_cosine:.6f}, mean {self.mean_cosine:.6f}"
            )
        else:
            lines.append(
                f"{self.common:,} rows in both"
                + ("; their dimensions differ" if self.common else "")
            )
        return "\n".join(lines)


def compare(a: FeatureCache, b: FeatureCache, rows: int = ROWS) -> Comparison:
    """Compare two caches; ``rows`` evenly spaced common rows (same source shard and source row)
    have vectors compared.
    """
    for cache in (a, b):
        cache.verify()
    fields = differences(_fields(a.manifest), _fields(b.manifest))
    ours, theirs = (
        {shard.source: i for i, shard in enumerate(cache.manifest.shards)} for cache in (a, b)
    )
    shards = _only(ours, theirs, "first") + _only(theirs, ours, "second")
    pairs = [(ours[name], theirs[name]) for name in ours if name in theirs]
    matched: list[tuple[np.ndarray, np.ndarray]] = []
    for i, j in pairs:
        one, other = a.manifest.shards[i], b.manifest.shards[j]
        shards += _changes(one, other)
        if one.source_rows == other.source_rows:
            here, there = _common(one, other)
            matched.append((a.starts[i] + here, b.starts[j] + there))
    empty = np.empty(0, dtype=np.int64)
    here, there = (np.concatenate([empty, *(pair[side] for pair in matched)]) for side in (0, 1))
    same = a.manifest.fingerprint == b.manifest.fingerprint
    if not len(here) or a.dim != b.dim:
        return Comparison(same, fields, shards, len(here), 0, None, None)
    keep = np.unique(np.linspace(0, len(here) - 1, min(rows, len(here))).astype(np.int64))
    cosines = (_unit(a[here[keep]]) * _unit(b[there[keep]])).sum(1)
    return Comparison(
        same, fields, shards, len(here), len(keep), float(cosines.min()), float(cosines.mean())
    )


def _fields(manifest: Manifest) -> dict:
    """Return the fields to compare; a code differs as a whole and not number by number."""
    fields = manifest.header()
    fields["code"] = None if manifest.code is None else "int8 per dimension"
    del fields["effect"]
    return fields


def _only(ours: dict[str, int], theirs: dict[str, int], which: str) -> list[str]:
    names = [name for name in ours if name not in theirs]
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        [f"{len(names)} shard{'s' * (len(names) > 1)} only in the {which}: {few}"] if names else []
    )


def _changes(one: ShardInfo, other: ShardInfo) -> list[str]:
    """Return in words what differs between the two shards of one source."""
    found = []
    for name in ("source_rows", "source_digest"):
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            found.append(
                f"{one.source}: {name} {a[:12] if isinstance(a, str) else a} against"
                f" {b[:12] if isinstance(b, str) else b}"
            )
    ours, theirs = set(one.bad) - set(other.bad), set(other.bad) - set(one.bad)
    if ours or theirs:
        found.append(
            f"{one.source}: rows quarantined only in the first: {_few(ours)}; only in the second:"
            f" {_few(theirs)}"
        )
    elif one.keys_sha256 != other.keys_sha256:
        found.append(f"{one.source}: other keys")
    return found


def _few(rows: set[int]) -> str:
    return (
        ", ".join(map(str, sorted(rows)[:4]))
        + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        or "none"
    )


def _common(one: ShardInfo, other: ShardInfo) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored row numbers, in each shard, of the source rows that both have."""
    good = np.setdiff1d(np.arange(one.source_rows), np.union1d(one.bad, other.bad).astype(np.int64))
    here, there = (
        good - np.searchsorted(np.array(shard.bad, dtype=np.int64), good) for shard in (one, other)
    )
    return here, there


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
