"""Writing a cache shard by shard; the manifest comes last and only when every shard is there.

While a cache is being made, ``.partial/plan.json`` states what it will be and
``.partial/<shard>.json`` that a shard is finished. A second run with the same plan goes on at the
first missing shard; with another plan it is refused. A finished cache may grow (``append``) or have
its quarantined rows tried again (``retry``): until the new manifest replaces the old one, the cache
stays what it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache.manifest import FILE, Manifest, differences
from dimefm.cache.plan import (
    PARTIAL,
    PLAN,
    QUARANTINE,
    REPLACED,
    header_of,
    next_name,
    shard_files,
    source_differences,
    text_of,
)
from dimefm.cache.row_buffer import Spool, Spooled, stored
from dimefm.cache.shard_info import ShardInfo
from dimefm.errors import CacheError
from dimefm.storage.files import Hashed, companions_sha256, sha256_keys, to_json
from dimefm.storage.locks import Claim
from dimefm.storage.stores import open_store

BUFFER = 1 << 20  # bytes that small writes gather to


@dataclasses.dataclass(frozen=True)
class Bad:
    """One quarantined row: its number in the source shard, its key if it has one, and why."""

    row: int
    key: str
    reason: str


class CacheWriter:
    """Writes one cache folder.

    ``header`` is a :class:`Manifest` without shards; ``sources`` are (name, rows) of every source
    shard in order, and ``digests`` name -> content digest of those where it is known. ``append``
    adds the sources that a finished cache does not have; ``retry`` writes those of its shards anew
    that have quarantined rows. Raises CacheError when two sources have one name, or the folder
    holds another cache, naming each field that differs.
    """

    def __init__(
        self,
        root: str | Path,
        header: Manifest,
        sources: Sequence[tuple[str, int]],
        digests: Mapping[str, str] | None = None,
        *,
        append: bool = False,
        retry: bool = False,
        scratch: str | Path | None = None,
    ):
        self.store = open_store(root, scratch)
        self.header, self.sources, self.digests = header, list(sources), dict(digests or {})
        self.append, self.retry = append, retry
        twice = [
            name for name, count in Counter(name for name, _ in self.sources).items() if count > 1
        ]
        if twice:
            raise CacheError(
                f"{root}: two sources are both called {twice[0]}; give a --dataroot that holds"
                " them all"
            )
        self.format = plugins.module("caches", header.format, CacheError)
        self.done: dict[str, ShardInfo] = {}
        self.found: Manifest | None = None
        self.finished: Manifest | None = None
        try:
            self._open()
        except OSError as error:
            raise CacheError(
                f"{root}: cannot be written ({error.strerror or error}); choose another --out"
            ) from error

    def _open(self) -> None:
        if self.store.size(FILE) is not None:
            self.found = Manifest.read(self.store)
            self._take_up(self.found)
            self._remove_replaced(self.found)
        elif self.append or self.retry:
            flag = "--append" if self.append else "--retry-bad"
            raise CacheError(
                f"{self.store}: holds no finished cache; {flag} needs one: run without it first"
            )
        self._files = self._name_files()
        if self.finished is not None:
            self.store.remove(PARTIAL)
            return
        plan = self._plan()
        text = text_of(self.store, PLAN)
        if text is not None and self.found is None:
            header_of(self.store.where(PLAN), text)
            self._same(plan, {"sources": [], **json.loads(text)})
        self.store.write(PLAN, to_json(plan))
        for name, rows in self.sources:
            if name not in self.done:
                self._recall(name, rows)

    def _plan(self) -> dict:
        return {
            **self.header.header(),
            "sources": [[name, rows, self._digest(name)] for name, rows in self.sources],
        }

    def _take_up(self, found: Manifest) -> None:
        """Take the shards of a finished cache for done, as far as this run is not about them."""
        held = {shard.source: shard for shard in found.shards}
        if self.append:
            given = dict(self.sources)
            more = [(name, rows) for name, rows in self.sources if name not in held]
            self.sources = [
                (shard.source, given.get(shard.source, shard.source_rows)) for shard in found.shards
            ] + more
            self.digests = {
                name: shard.source_digest for name, shard in held.items() if name not in given
            } | self.digests
        theirs = [
            [s.source, s.source_rows, self._digest(s.source) if self._redo(s) else s.source_digest]
            for s in found.shards
        ]
        plan = self._plan()
        ours = plan["sources"][: len(theirs)] if self.append else plan["sources"]
        self._same({**plan, "sources": ours}, {**found.header(), "sources": theirs})
        self._refuse_lost(found)
        self.done = {name: shard for name, shard in held.items() if not self._redo(shard)}
        if len(self.done) == len(self.sources):
            self.finished = found

    def _redo(self, shard: ShardInfo) -> bool:
        return self.retry and bool(shard.bad)

    def _refuse_lost(self, found: Manifest) -> None:
        """Raise CacheError when a finished cache has lost a shard, or one has another size than
        recorded.
        """
        for info in found.shards:
            if self.store.size(info.file) != info.bytes:
                raise CacheError(
                    f"{self.store.where(info.file)}: missing, or not of the {info.bytes} bytes that"
                    f" the manifest says; restore it, or remove {self.store} and run the same"
                    " command again"
                )

    def _digest(self, source: str) -> str:
        return self.digests.get(source, "")

    def _same(self, plan: dict, found: dict) -> None:
        """Raise CacheError naming each field in which the plan and what was found differ."""
        plan, found = json.loads(json.dumps(plan)), json.loads(json.dumps(found))
        found["libraries"], found["encoder"]["name"] = (
            plan["libraries"],
            plan["encoder"]["name"],
        )  # allowed to differ
        ours, theirs = plan.pop("sources"), found.pop("sources")
        grown = len(ours) > len(theirs) == sum(source in ours for source in theirs)
        different = differences(plan, found) + source_differences(ours, theirs)
        if different:
            remedy = (
                "add the new sources with --append"
                if grown and len(different) == 1
                else "give another --out"
            )
            raise CacheError(
                f"{self.store} already holds a cache made otherwise ({'; '.join(different)}: this"
                f" run against the folder); {remedy}, or remove that folder"
            )

    def _name_files(self) -> dict[str, str]:
        """Return source -> shard file: kept where finished, a further name where a shard is
        replaced.
        """
        named = shard_files([name for name, _ in self.sources], self.format.SUFFIXES[-1])
        kept = {shard.source: shard.file for shard in self.found.shards} if self.found else {}
        taken = {
            file
            for source, file in kept.items()
            if source in self.done or self._is_replaced(source, kept)
        }
        for source in named:
            if source in self.done:
                named[source] = kept[source]
                continue
            while named[source] in taken:
                named[source] = next_name(named[source], self.format.SUFFIXES[-1])
            taken.add(named[source])
        return named

    def _is_replaced(self, source: str, kept: dict[str, str]) -> bool:
        return source in kept and source not in self.done

    def _recall(self, source: str, rows: int) -> None:
        """Take up a shard that an earlier run finished, if its file is still what its record
        says.
        """
        try:
            text = self.store.read(self._record(source))
            if text is None:
                return
            info = ShardInfo.from_fields(json.loads(text))
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        whole = info.file == self._files[source] and self.store.size(info.file) == info.bytes
        if whole and (info.source_rows, info.source_digest) == (rows, self._digest(source)):
            self.done[source] = info

    def _record(self, source: str, ending: str = ".json") -> str:
        return f"{PARTIAL}/{self._files[source].replace('/', '%2F')}{ending}"

    def __contains__(self, source: str) -> bool:
        return self.finished is not None or source in self.done

    def replaced(self, source: str) -> ShardInfo | None:
        """Return the shard of the finished cache that this run is to write anew, None when there is
        none.
        """
        held = self.found.shards if self.found is not None and source not in self else ()
        return next((shard for shard in held if shard.source == source), None)

    def claim(self, source: str) -> Claim | None:
        """Claim a shard; None when it is finished by now, or another process is at it."""
        if source in self:
            return None
        found = self.store.claim(self._record(source, ".lock"))
        if found is not None:
            self._look_again([source])
            if source in self:
                found.release()
                return None
        return found

    def missing(self, look: bool = False) -> list[str]:
        """Return the sources whose shards are not there; with ``look``, what other processes have
        finished is taken up.
        """
        if look:
            self._look_again([name for name, _ in self.sources if name not in self])
        return [name for name, _ in self.sources if name not in self]

    def _look_again(self, sources: Sequence[str]) -> None:
        """Take up the manifest, or the records of ``sources``, that other processes have written
        since.
        """
        if self.found is None and self.store.size(FILE) is not None:
            self.finished = Manifest.read(self.store)
        counted = dict(self.sources)
        for source in sources:
            if source not in self:
                self._recall(source, counted[source])

    def keep(self, info: ShardInfo) -> None:
        """Leave a shard that was to be written anew as it is."""
        self.done[info.source] = info

    def spool(self, source: str) -> Spool:
        """Return where the rows of a shard gather on disk until it is written."""
        return Spool(self.store.part(self._record(source, ".rows")), self.header, source)

    def write(
        self, source: str, keys: Sequence[str], rows: np.ndarray | Spooled, bad: Sequence[Bad] = ()
    ) -> ShardInfo:
        """Write one whole shard; once this returns it survives a crash.

        ``rows`` is [len(keys), dim], finite, in source order, in the stored dtype or a float to be
        stored so; it may be a memory map. ``bad`` are the rows that are missing from it.
        """
        bad = sorted(bad, key=lambda b: b.row)
        self._whole(source, len(keys), [b.row for b in bad])
        if rows.shape != (len(keys), self.header.dim):
            raise CacheError(
                f"{source}: rows are {rows.shape}, expected {(len(keys), self.header.dim)}"
            )
        rows = rows if isinstance(rows, Spooled) else stored(rows, self.header, source)
        try:
            info = self._write(source, keys, rows, bad)
        except OSError as error:
            raise CacheError(
                f"{self.store}: shard for {source} could not be written"
                f" ({error.strerror or error}); finished shards are kept: make room, then run the"
                " same command again"
            ) from error
        self.done[source] = info
        return info

    def _whole(self, source: str, stored: int, bad: list[int]) -> None:
        """Raise CacheError unless the stored and the bad rows are all rows of the source, each
        once.
        """
        planned = dict(self.sources).get(source)
        if planned is None:
            raise CacheError(
                f"{source} is no shard of this cache; it has"
                f" {', '.join(name for name, _ in self.sources[:4])}"
            )
        if (
            stored + len(bad) != planned
            or len(set(bad)) < len(bad)
            or (bad and not 0 <= bad[0] <= bad[-1] < planned)
        ):
            raise CacheError(
                f"{source}: {planned} rows in, but {stored} out and rows {bad[:8]} bad; they must"
                " add up"
            )

    def _write(
        self, source: str, keys: Sequence[str], rows: np.ndarray | Spooled, bad: list[Bad]
    ) -> ShardInfo:
        main = self._files[source]
        suffixes = self.format.SUFFIXES
        names = {suffix: main.removesuffix(suffixes[-1]) + suffix for suffix in suffixes}
        parts = {suffix: self.store.part(name) for suffix, name in names.items()}
        try:
            hashed = {suffix: Hashed(part) for suffix, part in parts.items()}
            with contextlib.ExitStack() as stack:
                files = {
                    s: stack.enter_context(io.BufferedWriter(raw, BUFFER))
                    for s, raw in hashed.items()
                }
                try:
                    offset = self.format.write(files, list(keys), rows)
                except CacheError as error:
                    raise CacheError(f"{source}, {error}") from error
            for suffix in suffixes:
                self.store.commit(parts[suffix], names[suffix])
        except BaseException:
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise
        info = ShardInfo(
            file=main,
            source=source,
            source_rows=len(keys) + len(bad),
            rows=len(keys),
            bad=tuple(b.row for b in bad),
            bytes=hashed[suffixes[-1]].size,
            sha256=hashed[suffixes[-1]].sha256,
            keys_sha256=sha256_keys(keys),
            source_digest=self._digest(source),
            companions_sha256=companions_sha256(hashed[suffix].sha256 for suffix in suffixes[:-1]),
            offset=offset,
        )
        lines = [
            json.dumps({"source": source, **dataclasses.asdict(b)}, ensure_ascii=False) + "\n"
            for b in bad
        ]
        if lines or self.found:
            self.store.write(self._record(source, ".bad"), "".join(lines))
        self.store.write(self._record(source), to_json(dataclasses.asdict(info)))
        return info

    def forget(self) -> None:
        """Drop finished shards that are in no cache yet, so that the next run reads every row
        again.
        """
        self.store.remove(PARTIAL)
        for info in self.done.values() if self.found is None else ():
            for suffix in self.format.SUFFIXES:
                self.store.remove(info.file.removesuffix(self.format.SUFFIXES[-1]) + suffix)

    def seal(self) -> Manifest:
        """Write ``quarantine.jsonl`` and, last of all, ``manifest.json``; raise CacheError when a
        shard is missing.

        Of several processes one does it, and all return the same manifest.
        """
        if self.finished is not None:
            return self.finished
        try:
            with self.store.claim(f"{PARTIAL}/seal.lock", wait=True) or Claim():
                self._look_again([])
                return self._seal() if self.finished is None else self.finished
        except OSError as error:
            raise CacheError(
                f"{self.store}: cannot be finished ({error.strerror or error}); every shard is"
                " kept: make room, then run the same command again"
            ) from error

    def _seal(self) -> Manifest:
        missing = self.missing()
        if missing:
            raise CacheError(
                f"{self.store}: {len(missing)} shards are not written yet, the first is"
                f" {missing[0]}"
            )
        manifest = dataclasses.replace(
            self.header, shards=tuple(self.done[name] for name, _ in self.sources)
        )
        listed = self.quarantined()
        if listed:
            self.store.write(QUARANTINE, listed)
        self.store.write(REPLACED, to_json(self._replaced(manifest)))
        self.store.write(FILE, manifest.to_json())
        self._remove_replaced(manifest)
        self.store.remove(PARTIAL)
        self.finished = manifest
        return manifest

    def quarantined(self) -> str:
        """Return the lines of ``quarantine.jsonl``: all quarantined rows so far, in the order of
        the sources.
        """
        kept: dict[str, str] = {}
        lines = (
            (text_of(self.store, QUARANTINE) or "").splitlines(keepends=True) if self.found else []
        )
        for number, line in enumerate(lines, 1):
            try:
                source = json.loads(line)["source"]
                kept[source] = kept.get(source, "") + line
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                where = f"{self.store.where(QUARANTINE)}, line {number}"
                raise CacheError(
                    f"{where}: cannot be read ({error}); restore the file, or remove it"
                ) from error
        fresh = {name: self.store.read(self._record(name, ".bad")) for name, _ in self.sources}
        return "".join(kept.get(name, "") if text is None else text for name, text in fresh.items())

    def _replaced(self, manifest: Manifest) -> list[str]:
        """Return the files of shards that the finished cache has and ``manifest`` no longer
        names.
        """
        suffixes, named = self.format.SUFFIXES, {shard.file for shard in manifest.shards}
        gone = [
            shard.file
            for shard in (self.found.shards if self.found else ())
            if shard.file not in named
        ]
        return [file.removesuffix(suffixes[-1]) + suffix for file in gone for suffix in suffixes]

    def _remove_replaced(self, manifest: Manifest) -> None:
        """Remove what was listed as replaced and ``manifest`` does not name; an interrupted removal
        is taken up again.
        """
        suffixes = self.format.SUFFIXES
        named = {
            shard.file.removesuffix(suffixes[-1]) + suffix
            for shard in manifest.shards
            for suffix in suffixes
        }
        try:
            listed = json.loads(text_of(self.store, REPLACED) or "[]")
        except ValueError:
            listed = []
        for file in listed if isinstance(listed, list) else ():
            if isinstance(file, str) and file not in named:
                self.store.remove(file)
        if not any(shard.bad for shard in manifest.shards):
            self.store.remove(QUARANTINE)
