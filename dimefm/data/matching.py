"""Find the shard of a cache that holds the features of a raw shard.

A shard is recognized by its name, its number of rows, its keys and the digest of its content.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence

from dimefm.cache import FeatureCache, ShardInfo
from dimefm.data.rows import Rows, Shard
from dimefm.data.views.image_views import ViewPolicy, row_keys
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError
from dimefm.runtime.text import first_few
from dimefm.storage.files import sha256_keys

AS_THEN = "--rows, --split and --limit"  # must be as they were at the extraction
NAMED = 4  # sources that a message names at most

Policy = ViewPolicy | TextPolicy | TokenPolicy


def match_shards(rows: Rows, cache: FeatureCache) -> list[int]:
    """Return, for each shard of ``rows``, the number of the cache's shard with its features.

    Raises CacheError when a shard has no features in the cache, or two shards the same.
    """
    policy = _policy(cache)
    names = NameIndex([info.source for info in cache.manifest.shards])
    matched = [_match(shard, cache, names, policy) for shard in rows.shards]
    for number, count in Counter(matched).items():
        if count > 1:
            raise _matched_twice(rows, cache, matched, number)
    return matched


class NameIndex:
    """The shards of a cache by their source names, as they may be seen from several data roots."""

    def __init__(self, sources: Sequence[str]):
        self.numbers = {source: number for number, source in enumerate(sources)}
        # in this order, names that end alike stand together
        reversed_names = [(_reversed(source), number) for number, source in enumerate(sources)]
        self._reversed = sorted(reversed_names)

    def exact(self, name: str) -> int | None:
        """Return the number of the shard with this very name."""
        return self.numbers.get(name)

    def similar(self, name: str) -> list[int]:
        """Return the shards, ascending, of which :func:`same_name` holds."""
        found = set()
        parts = name.split("/")
        for start in range(len(parts)):
            ending = "/".join(parts[start:])
            if ending in self.numbers:
                found.add(self.numbers[ending])
        beginning = _reversed(name) + "/"
        place = bisect.bisect_left(self._reversed, (beginning,))
        while place < len(self._reversed):
            text, number = self._reversed[place]
            if not text.startswith(beginning):
                break
            found.add(number)
            place += 1
        return sorted(found)


def _reversed(name: str) -> str:
    """Return the folders of a name from the innermost to the outermost: a/b/c as c/b/a."""
    return "/".join(reversed(name.split("/")))


def _policy(cache: FeatureCache) -> Policy | None:
    """Return the policy by which a cache holds several rows for each source row, if it has one."""
    how = cache.manifest.how
    views = ViewPolicy.from_manifest(how) or TextPolicy.from_manifest(how)
    return views or TokenPolicy.from_manifest(how)


def _matched_twice(
    rows: Rows,
    cache: FeatureCache,
    matched: list[int],
    number: int,
) -> CacheError:
    """Return the error for several shards of ``rows`` that match the same shard of a cache."""
    first = matched.index(number)
    second = matched.index(number, first + 1)
    source = cache.manifest.shards[number].source
    return CacheError(
        f"{rows.shards[first].path} and {rows.shards[second].path} both match {source} in"
        f" {cache.store}. Fix: give the --dataroot that the extraction had"
    )


def _match(shard: Shard, cache: FeatureCache, names: NameIndex, policy: Policy | None) -> int:
    """Return the number of the cache's shard with the features of a raw shard."""
    infos = cache.manifest.shards
    keys = None
    exact = names.exact(shard.name)
    if exact is not None and infos[exact].source_rows == len(shard) * cache.manifest.views:
        keys = row_keys(shard.keys(), policy)
        if _has_keys(infos[exact], keys):
            _check_content(shard, cache, infos[exact])
            return exact
    named = _with_its_name(shard, cache, names)
    counted = _with_its_rows(shard, cache, named)
    if keys is None:
        keys = row_keys(shard.keys(), policy)
    same_keys = [number for number in counted if _has_keys(infos[number], keys)]
    if not same_keys:
        same_keys = _with_former_keys(shard, cache, policy, counted)
        if exact in same_keys:
            same_keys = [exact]
    if len(same_keys) > 1:
        sources = " or ".join(infos[number].source for number in same_keys[:NAMED])
        raise CacheError(
            f"{shard.path}: could be {sources} in {cache.store}, which have the same keys. Fix:"
            " give the --dataroot that the extraction had"
        )
    if not same_keys:
        raise _other_keys(shard, keys, cache, infos[counted[0]])
    number = same_keys[0]
    _check_content(shard, cache, infos[number])
    return number


def _with_its_name(shard: Shard, cache: FeatureCache, names: NameIndex) -> list[int]:
    """Return the shards of a cache whose name may be this shard's; raise CacheError for none."""
    infos = cache.manifest.shards
    named = names.similar(shard.name)
    if named:
        return named
    sources = first_few([info.source for info in infos], NAMED)
    how = cache.manifest.how
    if "adopted" in how and how.get("keys") not in (None, "raw rows"):
        raise CacheError(
            f"{shard.path}: the cache {cache.store} was adopted without --rows-of, so its shards"
            f" are named after feature files ({sources}), expected {shard.name}. Fix: adopt it"
            f" again into another --out, with --rows-of {shard.name}"
        )
    raise CacheError(
        f"{shard.path}: the cache {cache.store} has no features for a shard named {shard.name} (it"
        f" holds {sources}). Fix: extract it too (--append adds what is new), or give the"
        f" --dataroot, {AS_THEN} that the extraction had"
    )


def _with_its_rows(shard: Shard, cache: FeatureCache, named: list[int]) -> list[int]:
    """Return those of the ``named`` shards of a cache that have this shard's number of rows.

    Raises CacheError when none has.
    """
    infos = cache.manifest.shards
    views = cache.manifest.views
    counted = [i for i in named if infos[i].source_rows == len(shard) * views]
    if counted:
        return counted
    cached_rows = infos[named[0]].source_rows // views
    raise CacheError(
        f"{shard.path}: {len(shard)} rows, but the features in {cache.store} were made from"
        f" {cached_rows}. Fix: give the {AS_THEN} that the extraction had; or the source has"
        " changed, extract it again"
    )


def _with_former_keys(
    shard: Shard,
    cache: FeatureCache,
    policy: Policy | None,
    numbers: list[int],
) -> list[int]:
    """Return those of the shards ``numbers`` of a cache that have the shard's former keys.

    Raises CacheError when they hold texts whose words were drawn by these keys.
    """
    former_keys = shard.former_keys()
    if former_keys is None:
        return []
    infos = cache.manifest.shards
    keys = row_keys(former_keys, policy)
    matched = [number for number in numbers if _has_keys(infos[number], keys)]
    if matched and isinstance(policy, TextPolicy) and policy.augment != "none":
        raise CacheError(
            f"{cache.store}: the words of its texts were drawn by row numbers, and the rows of"
            f" {shard.path} now have the names of image files as keys. Fix: extract the texts again"
        )
    return matched


def _has_keys(info: ShardInfo, keys: list[str]) -> bool:
    """Tell whether a cached shard was made from rows with these keys."""
    if info.bad:
        bad = set(info.bad)
        keys = [key for row, key in enumerate(keys) if row not in bad]
    return sha256_keys(keys) == info.keys_sha256


def _check_content(shard: Shard, cache: FeatureCache, info: ShardInfo) -> None:
    """Raise CacheError when a raw shard differs in content from what its features were made from.

    Keys alone may be line numbers. A packed shard may stand for what it was packed from.
    """
    if not info.source_digest:
        return
    digests = shard.digests()
    if info.source_digest in digests:
        return
    raise CacheError(
        f"{shard.path}: its content has digest {digests[-1][:12]}, the features in {cache.store}"
        f" were made from {info.source_digest[:12]}. Fix: give the {AS_THEN} that the extraction"
        " had; or the source has changed since, extract it again"
    )


def same_name(name: str, stored_name: str) -> bool:
    """Tell whether two shard names may belong to one shard, seen from two data roots."""
    if name == stored_name:
        return True
    return name.endswith("/" + stored_name) or stored_name.endswith("/" + name)


def _other_keys(shard: Shard, keys: list[str], cache: FeatureCache, info: ShardInfo) -> CacheError:
    """Return the error for a raw shard with other keys than its features, naming the first row."""
    stored_keys, _ = cache.read(info)
    bad = set(info.bad)
    kept = [row for row in range(len(keys)) if row not in bad]
    for row, stored_key in zip(kept, stored_keys, strict=True):
        if keys[row] != stored_key:
            break
    return CacheError(
        f"{shard.path}, row {row // cache.manifest.views}: the raw row has key '{keys[row]}', its"
        f" feature row in {cache.store} ({info.file}) has '{stored_key}'; the two are not the same"
        f" rows. Fix: give the {AS_THEN} that the extraction had, or extract the features again"
    )


def match_caches(first: FeatureCache, second: FeatureCache) -> list[int]:
    """Return the number of ``second``'s shard of the same source for each shard of ``first``.

    Raises CacheError, naming the shard, when the caches were not made from the same rows.
    """
    numbers = {info.source: number for number, info in enumerate(second.manifest.shards)}
    sources = [info.source for info in first.manifest.shards]
    unmatched = set(sources) ^ set(numbers)
    if unmatched:
        source = min(unmatched)
        holder, lacking = (second, first) if source in numbers else (first, second)
        raise CacheError(
            f"{holder.store} has a shard of source {source}, {lacking.store} has none; the"
            " teachers of one run need features of the same sentences. Fix: extract the same"
            " sources with both"
        )
    matched: list[int] = []
    for info in first.manifest.shards:
        number = numbers[info.source]
        _check_same_rows(first, info, second, second.manifest.shards[number])
        matched.append(number)
    return matched


def _check_same_rows(
    first: FeatureCache,
    info: ShardInfo,
    second: FeatureCache,
    second_info: ShardInfo,
) -> None:
    """Raise CacheError, naming the field, when two shards of one name were made from other rows."""
    know_digests = bool(info.source_digest and second_info.source_digest)
    same_bad_rows = info.bad == second_info.bad
    fields = ["source_rows"]
    if know_digests:
        fields.append("source_digest")
    if same_bad_rows:
        fields.append("keys_sha256")
    for field in fields:
        value = getattr(info, field)
        second_value = getattr(second_info, field)
        if value != second_value:
            raise CacheError(
                f"{first.store} and {second.store}: shard {info.source} has {field} {value} in"
                f" one, {second_value} in the other; the teachers of one run need features of the"
                " same sentences. Fix: extract them again with both"
            )
    if not same_bad_rows and not know_digests:
        _check_same_keys(first, info, second, second_info)


def _check_same_keys(
    first: FeatureCache,
    info: ShardInfo,
    second: FeatureCache,
    second_info: ShardInfo,
) -> None:
    """Raise CacheError, naming a row, when two shards have different keys for one source row."""
    keys = _key_of_row(first, info)
    second_keys = _key_of_row(second, second_info)
    for row in keys.keys() & second_keys.keys():
        if keys[row] != second_keys[row]:
            raise CacheError(
                f"{first.store} and {second.store}: row {row} of shard {info.source} has key"
                f" '{keys[row]}' in one, '{second_keys[row]}' in the other. Fix: extract them again"
                " with both teachers"
            )


def _key_of_row(cache: FeatureCache, info: ShardInfo) -> dict[int, str]:
    """Return source row -> key of the rows that a shard holds."""
    bad = set(info.bad)
    rows = [row for row in range(info.source_rows) if row not in bad]
    keys, _ = cache.read(info)
    return dict(zip(rows, keys, strict=True))
