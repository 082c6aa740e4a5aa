"""Feature TSVs that are shards of a cache of dimefm: its manifest says who made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.cache.manifest import FILE, Manifest, differences
from dimefm.cache.quarantine import quarantined
from dimefm.cache.reader import FeatureCache
from dimefm.cache.shard_info import ShardInfo
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError
from dimefm.storage.files import sha256_keys

LEVELS = 8  # folders above a shard in which its manifest is looked for


@dataclass(frozen=True)
class OwnShard:
    """A feature TSV that is the shard ``info`` of ``cache``; ``bad`` are its quarantined rows."""

    cache: FeatureCache
    info: ShardInfo
    bad: tuple[Bad, ...]


def own_shards(files: Sequence[Path], kind: str) -> list[OwnShard]:
    """Return the shards of caches that the feature ``files`` are, [] when none of them is one.

    Raises CacheError when only some are, they are of different teachers or settings, of another
    ``kind`` or number format, or changed since they were written.
    """
    caches: dict[Path, dict[str, OwnShard]] = {}
    shards = [_shard_of(file, caches) for file in files]
    own = [shard for shard in shards if shard is not None]
    if not own:
        return []
    first = own[0].cache
    for file, shard in zip(files, shards, strict=True):
        if shard is None:
            raise CacheError(
                f"{file}: has no {FILE} next to it, and {files[0]} or another one has: they may be"
                " of different teachers. Fix: name files of one cache"
            )
        _refuse_other(file, shard, first.manifest, kind)
        shard.cache.check_sha256(shard.info)
    return own


def _shard_of(file: Path, caches: dict[Path, dict[str, OwnShard]]) -> OwnShard | None:
    """Return the shard that a file is, None when no cache around it has it.

    ``caches`` are the shards of the caches that were read already, by file name.
    """
    place = file.absolute()
    for root in list(place.parents)[:LEVELS]:
        if not (root / FILE).is_file():
            continue
        name = place.relative_to(root).as_posix()
        if root not in caches:
            if not _is_manifest(root / FILE):
                continue
            caches[root] = _shards_by_file(FeatureCache(root))
        if name in caches[root]:
            return caches[root][name]
    return None


def _shards_by_file(cache: FeatureCache) -> dict[str, OwnShard]:
    bad: dict[str, list[Bad]] = {}
    for source, row in quarantined(cache.store, cache.manifest):
        bad.setdefault(source, []).append(row)
    shards = {}
    for info in cache.manifest.shards:
        shards[info.file] = OwnShard(cache, info, tuple(bad.get(info.source, ())))
    return shards


def _is_manifest(path: Path) -> bool:
    """Tell whether a manifest.json is one of a cache; web pages have files of that name, too."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    return b'"encoder"' in head and b'"kind"' in head


def _refuse_other(file: Path, shard: OwnShard, first: Manifest, kind: str) -> None:
    manifest = shard.cache.manifest
    if manifest.kind != kind:
        raise CacheError(
            f"{file}: holds {manifest.kind} features, {kind} features are needed. Fix: check the"
            " order of --tsv-file-list"
        )
    if manifest.dtype != "float32":
        raise CacheError(
            f"{file}: holds {manifest.dtype}, and DIME-FM's form is float32. Fix: name the cache"
            f" {shard.cache.root} with --{kind}-cache, or convert it with --dtype float32"
        )
    before = {**first.encoder.identity(), **first.how}
    now = {**manifest.encoder.identity(), **manifest.how}
    different = differences(before, now)
    if different:
        raise CacheError(
            f"{file}: its cache was made otherwise than the others ({'; '.join(different)[:200]})."
            " Fix: name files of one teacher"
        )


def identity_of(shards: Sequence[OwnShard]) -> str:
    """Return a digest of the caches that shards are of."""
    return sha256_keys(shard.cache.manifest.fingerprint for shard in shards)
