"""Folders of images that have grown since a cache was made of them.

The files that the cache has stay the shards that they are there; the new ones form shards of their
own, ``FOLDER/added-00000`` and so on. So a cache of a folder can grow with it.
"""

from __future__ import annotations

import re
from collections import defaultdict

from dimefm.cache import FeatureCache, ShardInfo
from dimefm.cache.quarantine import quarantined
from dimefm.data.formats.folder import ROWS_PER_SHARD, FolderShard
from dimefm.data.matching import same_name
from dimefm.data.rows import Rows, Shard

PART = re.compile(r"(?:added-)?[0-9]{5,}")  # names a part of a folder
ADDED = "added-"


def as_cached(rows: Rows, cache: FeatureCache) -> Rows:
    """Return ``rows`` with folders of images divided into shards as ``cache`` divides them.

    A folder stays as it is when the cache does not have it, has just these shards, or when a file
    that it has was changed or removed.
    """
    folders: dict[str, list[FolderShard]] = defaultdict(list)
    for shard in rows.shards:
        if isinstance(shard, FolderShard):
            folders[shard.folder_name].append(shard)
    divided: dict[str, list[FolderShard]] = {}
    for name, shards in folders.items():
        infos = _infos_of(name, cache)
        if infos and not _are_alike(shards, infos, cache):
            parts = _divide(shards, infos, cache)
            if parts is not None:
                divided[name] = parts
    if not divided:
        return rows
    result: list[Shard] = []
    for shard in rows.shards:
        name = shard.folder_name if isinstance(shard, FolderShard) else None
        if name is None or name not in divided:
            result.append(shard)
        else:
            result += divided[name]
            divided[name] = []
    return Rows(result, rows.skipped, rows.selection)


def _infos_of(name: str, cache: FeatureCache) -> list[ShardInfo]:
    """Return the shards of a cache that a folder was divided into."""
    infos: list[ShardInfo] = []
    for info in cache.manifest.shards:
        folder, _, part = info.source.rpartition("/")
        is_whole = same_name(name, info.source)
        is_part = bool(folder) and same_name(name, folder) and PART.fullmatch(part)
        if is_whole or is_part:
            infos.append(info)
    return infos


def _are_alike(shards: list[FolderShard], infos: list[ShardInfo], cache: FeatureCache) -> bool:
    """Tell whether a folder has as many files in each shard as the cache."""
    views = cache.manifest.views
    return [len(shard) * views for shard in shards] == [info.source_rows for info in infos]


def _divide(
    shards: list[FolderShard], infos: list[ShardInfo], cache: FeatureCache
) -> list[FolderShard] | None:
    """Return the shards of a cache and those of further files, None when they do not fit it."""
    if cache.manifest.how.get("captions") == "all":
        return None
    first = shards[0]
    files = [file for shard in shards for file in shard.files]
    file_of = {key: file for shard in shards for key, file in shard.file_of().items()}
    bad_keys: dict[str, dict[int, str]] = defaultdict(dict)
    for source, bad in quarantined(cache.store, cache.manifest):
        bad_keys[source][bad.row] = bad.key
    parts: list[FolderShard] = []
    known: set[str] = set()
    for info in infos:
        keys = _source_keys(cache, info, bad_keys[info.source])
        part = first.part(info.source, [file_of.get(key, key) for key in keys])
        if part.digest() != info.source_digest:
            return None
        known.update(part.files)
        parts.append(part)
    new = [file for file in files if file not in known]
    number = sum(ADDED in info.source.rpartition("/")[2] for info in infos)
    for start in range(0, len(new), ROWS_PER_SHARD):
        name = f"{first.folder_name}/{ADDED}{number:05d}"
        parts.append(first.part(name, new[start : start + ROWS_PER_SHARD]))
        number += 1
    return parts


def _source_keys(cache: FeatureCache, info: ShardInfo, bad_keys: dict[int, str]) -> list[str]:
    """Return the keys of the files that a shard was made of, in order."""
    stored = iter([key for keys in cache.key_blocks(info) for key in keys])
    bad = set(info.bad)
    row_keys: list[str] = []
    for row in range(info.source_rows):
        row_keys.append(bad_keys.get(row, "") if row in bad else next(stored))
    views = cache.manifest.views
    if views == 1 and not _has_views(cache):
        return row_keys
    return [key.rpartition("#")[0] for key in row_keys[::views]]


def _has_views(cache: FeatureCache) -> bool:
    """Tell whether the keys of a cache end with the number of a view."""
    how = cache.manifest.how
    return any(how.get(name) for name in ("views", "text_views", "tokens"))
