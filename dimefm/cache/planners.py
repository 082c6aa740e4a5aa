"""What one run of a cache writer is to do: make a new cache, let one grow, or retry its bad rows.

Each case has a planner. All return a :class:`WritePlan`, and raise CacheError when the folder holds
another cache than the one asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dimefm.cache.manifest import FILE, Manifest, differences
from dimefm.cache.plan import PLAN, header_of, next_name, shard_files, text_of
from dimefm.cache.shard_info import ShardInfo
from dimefm.errors import CacheError
from dimefm.runtime.text import first_few
from dimefm.storage.small_files import parse_json
from dimefm.storage.stores import Store

Sources = list[tuple[str, int]]  # (name, rows) of source shards
MOST_DIFFERENCES = 8  # differences between sources that a message lists
ROOM = 300  # characters of all differences in a message


@dataclass(frozen=True)
class WritePlan:
    """What one run of a writer makes.

    ``header`` is the manifest without shards. ``sources`` are (name, rows) of every source shard of
    the cache, in order, and ``digests`` name -> content digest where it is known. ``existing`` is
    the finished cache in the folder, None when there is none; ``kept`` maps the names of its
    sources to the shards that stay as they are.
    """

    header: Manifest
    sources: Sources
    digests: dict[str, str]
    existing: Manifest | None
    kept: dict[str, ShardInfo]

    def is_finished(self) -> bool:
        """Return whether the existing cache has every shard already."""
        return self.existing is not None and len(self.kept) == len(self.sources)

    def digest(self, source: str) -> str:
        """Return the content digest of a source, "" when it is unknown."""
        return self.digests.get(source, "")

    def fields(self) -> dict:
        """Return the plan as plain values, for ``plan.json``."""
        source_fields = [[name, rows, self.digest(name)] for name, rows in self.sources]
        return {**self.header.header(), "sources": source_fields}

    def shard_files(self, suffix: str) -> dict[str, str]:
        """Return source name -> shard file.

        A kept shard keeps its file. A shard that is written again gets a new name, since the old
        file belongs to the existing cache until the new manifest replaces it.
        """
        existing_files = {}
        if self.existing is not None:
            existing_files = {shard.source: shard.file for shard in self.existing.shards}
        taken = set(existing_files.values())
        files = shard_files([name for name, _ in self.sources], suffix)
        for source in files:
            if source in self.kept:
                files[source] = existing_files[source]
                continue
            while files[source] in taken:
                files[source] = next_name(files[source], suffix)
            taken.add(files[source])
        return files


def plan_create(
    store: Store,
    header: Manifest,
    sources: Sources,
    digests: dict[str, str],
) -> WritePlan:
    """Plan a new cache, the rest of an unfinished one, or nothing when it is finished."""
    existing = _existing(store)
    if existing is None:
        plan = WritePlan(header, sources, digests, None, {})
        _refuse_another_plan(store, plan)
        return plan
    plan = WritePlan(header, sources, digests, existing, _by_source(existing))
    recorded = [_source_fields(shard, shard.source_digest) for shard in existing.shards]
    _refuse_difference(store, plan.fields(), {**existing.header(), "sources": recorded})
    _refuse_lost_shards(store, existing)
    return plan


def plan_append(
    store: Store, header: Manifest, sources: Sources, digests: dict[str, str]
) -> WritePlan:
    """Plan the shards of ``sources`` that a finished cache does not have; its own come first."""
    existing = _existing(store)
    if existing is None:
        raise _needs_finished_cache(store, "--append")
    kept = _by_source(existing)
    given_rows = dict(sources)
    all_sources = []
    all_digests = {}
    for shard in existing.shards:
        rows = given_rows.get(shard.source, shard.source_rows)
        all_sources.append((shard.source, rows))
        if shard.source not in given_rows:
            all_digests[shard.source] = shard.source_digest
    for name, rows in sources:
        if name not in kept:
            all_sources.append((name, rows))
    all_digests |= digests
    plan = WritePlan(header, all_sources, all_digests, existing, kept)

    recorded = [_source_fields(shard, shard.source_digest) for shard in existing.shards]
    planned = plan.fields()
    planned["sources"] = planned["sources"][: len(recorded)]
    _refuse_difference(store, planned, {**existing.header(), "sources": recorded})
    _refuse_lost_shards(store, existing)
    return plan


def plan_retry(
    store: Store, header: Manifest, sources: Sources, digests: dict[str, str]
) -> WritePlan:
    """Plan the shards of a finished cache that have quarantined rows.

    The sources of these shards may have changed: their content digests may differ from before.
    """
    existing = _existing(store)
    if existing is None:
        raise _needs_finished_cache(store, "--retry-bad")
    kept = {}
    recorded = []
    for shard in existing.shards:
        digest = shard.source_digest
        if shard.bad:
            digest = digests.get(shard.source, "")
        else:
            kept[shard.source] = shard
        recorded.append(_source_fields(shard, digest))
    plan = WritePlan(header, sources, digests, existing, kept)
    _refuse_difference(store, plan.fields(), {**existing.header(), "sources": recorded})
    _refuse_lost_shards(store, existing)
    return plan


def _existing(store: Store) -> Manifest | None:
    """Return the manifest of the finished cache in the folder, None when there is none."""
    if store.size(FILE) is None:
        return None
    return Manifest.read(store)


def _by_source(manifest: Manifest) -> dict[str, ShardInfo]:
    return {shard.source: shard for shard in manifest.shards}


def _source_fields(shard: ShardInfo, digest: str) -> list:
    """Return the entry of a shard's source as it stands in a plan."""
    return [shard.source, shard.source_rows, digest]


def _needs_finished_cache(store: Store, flag: str) -> CacheError:
    return CacheError(
        f"{store}: holds no finished cache, which {flag} needs. Fix: run without it first"
    )


def _refuse_another_plan(store: Store, plan: WritePlan) -> None:
    """Raise CacheError when the folder holds an unfinished cache with another plan."""
    text = text_of(store, PLAN)
    if text is None:
        return
    header_of(store.where(PLAN), text)
    _refuse_difference(store, plan.fields(), {"sources": [], **parse_json(text)})


def _refuse_difference(store: Store, planned: dict, existing: dict) -> None:
    """Raise CacheError naming each field in which the plan and the folder's cache differ."""
    planned = json.loads(json.dumps(planned))
    existing = json.loads(json.dumps(existing))
    # the libraries and the name of the encoder may differ
    existing["libraries"] = planned["libraries"]
    existing["encoder"]["name"] = planned["encoder"]["name"]
    planned_sources = planned.pop("sources")
    existing_sources = existing.pop("sources")
    if planned["dtype"] != existing["dtype"]:
        for name in ("code", "effect"):  # they follow from the dtype
            existing[name] = planned.get(name)
    different = differences(planned, existing)
    different += source_differences(planned_sources, existing_sources)
    if not different:
        return
    planned_places = {tuple(source) for source in planned_sources}
    common = sum(tuple(source) in planned_places for source in existing_sources)
    only_sources_are_new = len(planned_sources) > len(existing_sources) == common
    remedy = "give another --out"
    if only_sources_are_new and len(different) == 1:
        remedy = "add the new sources with --append"
    raise CacheError(
        f"{store} already holds a cache made otherwise ({_joined(different)}: this run against"
        f" the folder). Fix: {remedy}, or remove that folder"
    )


def _joined(different: list[str]) -> str:
    """Return the first differences, as many as a message has room for, and how many are left."""
    text = different[0]
    for number, line in enumerate(different[1:], 1):
        if len(text) + len(line) > ROOM:
            left = len(different) - number
            return f"{text}; and {left} more"
        text += f"; {line}"
    return text


def source_differences(planned: list[list], existing: list[list]) -> list[str]:
    """Return in words how two lists of (source, rows, digest) differ."""
    planned_by_name = {name: rest for name, *rest in planned}
    existing_by_name = {name: rest for name, *rest in existing}
    lines = []
    only_planned = planned_by_name.keys() - existing_by_name.keys()
    if only_planned:
        lines.append(f"sources only here: {first_few(sorted(only_planned), 3)}")
    only_existing = existing_by_name.keys() - planned_by_name.keys()
    if only_existing:
        lines.append(f"sources only in the folder: {first_few(sorted(only_existing), 3)}")
    for name in sorted(planned_by_name.keys() & existing_by_name.keys()):
        rows, digest = planned_by_name[name]
        existing_rows, existing_digest = existing_by_name[name]
        if rows != existing_rows:
            lines.append(f"rows of source {name}: {rows} against {existing_rows}")
        elif digest != existing_digest:
            lines.append(
                f"content of source {name}: digest {digest[:12]!r} against {existing_digest[:12]!r}"
            )
    if not lines and planned != existing:
        lines.append(_order_difference(planned, existing))
    return lines[:MOST_DIFFERENCES]


def _order_difference(planned: list[list], existing: list[list]) -> str:
    """Return in words where two lists of the same sources begin to differ."""
    for place, (source, existing_source) in enumerate(zip(planned, existing, strict=False)):
        if source != existing_source:
            return f"order of sources: {source[0]} against {existing_source[0]} at place {place}"
    return f"{len(planned)} sources against {len(existing)}"


def _refuse_lost_shards(store: Store, existing: Manifest) -> None:
    """Raise CacheError when a shard of a finished cache is missing or has another size."""
    for info in existing.shards:
        if store.size(info.file) != info.bytes:
            raise CacheError(
                f"{store.where(info.file)}: missing, or not of the {info.bytes} bytes that the"
                f" manifest says. Fix: restore it, or remove {store} and run the same command again"
            )
