"""Writing a cache shard by shard; the manifest comes last, when every shard is written.

While a cache is being made, ``.partial/plan.json`` states what it will be and
``.partial/<shard>.json`` that a shard is finished. A second run with the same plan resumes at the
first missing shard; a run with another plan is refused. A finished cache may grow (``append``) or
have its quarantined rows tried again (``retry``): until the new manifest replaces the old one, the
cache stays what it was.
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
from dimefm.cache.manifest import FILE, Manifest
from dimefm.cache.plan import (
    PARTIAL,
    PLAN,
    QUARANTINE,
    REPLACED,
    WRITERS,
    flat_name,
    text_of,
)
from dimefm.cache.planners import plan_append, plan_create, plan_retry
from dimefm.cache.row_buffer import BufferedRows, RowBuffer, stored
from dimefm.cache.shard_info import ShardInfo
from dimefm.errors import CacheError
from dimefm.runtime.text import first_few
from dimefm.storage.files import Hashed, companions_sha256, sha256_keys, to_json
from dimefm.storage.locks import Claim
from dimefm.storage.small_files import parse_json
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
    shard in order, and ``digests`` name -> content digest where it is known. ``append`` adds the
    sources that a finished cache does not have; ``retry`` writes its shards with quarantined rows
    again; at most one of the two may be set. ``done`` maps source name -> finished shard, and
    ``finished`` is the sealed manifest, None until then. Raises CacheError when two sources have
    one name, or the folder holds another cache, naming each field that differs.
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
        if append and retry:
            raise ValueError("append and retry are both set, expected at most one")
        self.store = open_store(root, scratch)
        self.header = header
        counts = Counter(name for name, _ in sources)
        for name, count in counts.items():
            if count > 1:
                raise CacheError(
                    f"{root}: two sources are both called {name}. Fix: give a --dataroot that holds"
                    " them all"
                )
        self.format = plugins.module("caches", header.format, CacheError)
        planner = plan_create
        if append:
            planner = plan_append
        elif retry:
            planner = plan_retry
        try:
            self.plan = planner(self.store, header, list(sources), dict(digests or {}))
            self._start(is_alone=append or retry)
        except OSError as error:
            raise CacheError(
                f"{root}: cannot be written ({error.strerror or error}). Fix: choose another --out"
            ) from error

    @property
    def sources(self) -> list[tuple[str, int]]:
        """(name, rows) of every source shard of the cache, in order."""
        return self.plan.sources

    @property
    def digests(self) -> dict[str, str]:
        """Content digest of every source shard where it is known."""
        return self.plan.digests

    def _start(self, is_alone: bool) -> None:
        """Write the plan, and take the shards that are finished already.

        ``is_alone`` says that no other process writes to a finished cache.
        """
        plan = self.plan
        self._source_rows = dict(plan.sources)
        self._existing_shards: dict[str, ShardInfo] = {}
        if plan.existing is not None:
            self._existing_shards = {shard.source: shard for shard in plan.existing.shards}
        self.done = dict(plan.kept)
        self.finished: Manifest | None = None
        if plan.existing is not None:
            self._remove_replaced(plan.existing)
        self._files = plan.shard_files(self.format.SUFFIXES[-1])
        if plan.is_finished():
            self.finished = plan.existing
            self._remove_leftovers(is_alone)
            return
        self.store.write(PLAN, to_json(plan.fields()))
        for name, rows in plan.sources:
            if name not in self.done:
                self._load_record(name, rows)

    def _remove_leftovers(self, is_alone: bool) -> None:
        """Remove what an ended process left in a finished cache, not what another one writes."""
        try:
            claim = Claim() if is_alone else self.store.claim(WRITERS)
        except OSError:
            return  # a finished cache on a disk that cannot be written
        if claim is not None:
            with claim:
                self.store.remove(PARTIAL)

    def _load_record(self, source: str, rows: int) -> None:
        """Take a shard that another run finished, if its file is what its record says."""
        try:
            text = self.store.read(self._record(source))
            if text is None:
                return
            info = ShardInfo.from_fields(parse_json(text))
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        is_whole = info.file == self._files[source] and self.store.size(info.file) == info.bytes
        is_same_source = info.source_rows == rows and info.source_digest == self.plan.digest(source)
        if is_whole and is_same_source:
            self.done[source] = info

    def _record(self, source: str, ending: str = ".json") -> str:
        return f"{PARTIAL}/{flat_name(self._files[source])}{ending}"

    def __contains__(self, source: str) -> bool:
        return self.finished is not None or source in self.done

    def replaced(self, source: str) -> ShardInfo | None:
        """Return the shard of the finished cache that this run replaces, None if there is none."""
        if source in self:
            return None
        return self._existing_shards.get(source)

    def claim(self, source: str) -> Claim | None:
        """Claim a shard; return None when it is finished, or another process is writing it."""
        if source in self:
            return None
        claim = self.store.claim(self._record(source, ".lock"))
        if claim is None:
            return None
        self._look_again([source])
        if source in self:
            claim.release()
            return None
        return claim

    def missing(self, look: bool = False) -> list[str]:
        """Return the sources whose shards are not finished.

        With ``look``, shards that other processes have finished since are taken first.
        """
        if look:
            self._look_again(self._unfinished())
        return self._unfinished()

    def _unfinished(self) -> list[str]:
        return [name for name, _ in self.sources if name not in self]

    def _look_again(self, sources: Sequence[str]) -> None:
        """Read the manifest, or the records of ``sources``, that other processes have written."""
        if self.plan.existing is None and self.store.size(FILE) is not None:
            self.finished = Manifest.read(self.store)
        for source in sources:
            if source not in self:
                self._load_record(source, self._source_rows[source])

    def keep(self, info: ShardInfo) -> None:
        """Keep a shard that was to be written again as it is."""
        self.done[info.source] = info

    def row_buffer(self, source: str) -> RowBuffer:
        """Return a buffer on disk for the rows of a shard until it is written."""
        return RowBuffer(self.store.part(self._record(source, ".rows")), self.header, source)

    def write(
        self,
        source: str,
        keys: Sequence[str],
        rows: np.ndarray | BufferedRows,
        bad: Sequence[Bad] = (),
    ) -> ShardInfo:
        """Write one whole shard; once this returns it survives a crash.

        ``rows`` is [len(keys), dim], finite, in source order, in the stored dtype or a float to be
        stored so; it may be a memory map. ``bad`` are the rows that are missing from it.
        """
        bad = sorted(bad, key=lambda b: b.row)
        self._check_row_numbers(source, len(keys), [b.row for b in bad])
        expected_shape = (len(keys), self.header.dim)
        if rows.shape != expected_shape:
            raise CacheError(f"{source}: rows are {rows.shape}, expected {expected_shape}")
        if not isinstance(rows, BufferedRows):
            rows = stored(rows, self.header, source)
        try:
            info = self._write(source, keys, rows, bad)
        except OSError as error:
            raise CacheError(
                f"{self.store}: shard for {source} could not be written"
                f" ({error.strerror or error}); finished shards are kept. Fix: make room, then run"
                " the same command again"
            ) from error
        self.done[source] = info
        return info

    def _check_row_numbers(self, source: str, stored_rows: int, bad: list[int]) -> None:
        """Raise CacheError unless stored and bad rows together are the rows of the source."""
        source_rows = self._source_rows.get(source)
        if source_rows is None:
            names = [name for name, _ in self.sources]
            known = first_few(names, 4)
            raise CacheError(f"{source} is no shard of this cache; expected one of {known}")
        adds_up = stored_rows + len(bad) == source_rows
        has_repeats = len(set(bad)) < len(bad)
        is_inside = not bad or 0 <= bad[0] <= bad[-1] < source_rows
        if not adds_up or has_repeats or not is_inside:
            raise CacheError(
                f"{source}: {source_rows} rows in, but {stored_rows} out and rows {bad[:8]} bad;"
                " expected rows in = rows out + bad rows"
            )

    def _write(
        self, source: str, keys: Sequence[str], rows: np.ndarray | BufferedRows, bad: list[Bad]
    ) -> ShardInfo:
        main_suffix = self.format.SUFFIXES[-1]
        companion_suffixes = self.format.SUFFIXES[:-1]
        hashed, offset = self._write_files(source, keys, rows)
        info = ShardInfo(
            file=self._files[source],
            source=source,
            source_rows=len(keys) + len(bad),
            rows=len(keys),
            bad=tuple(b.row for b in bad),
            bytes=hashed[main_suffix].size,
            sha256=hashed[main_suffix].sha256,
            keys_sha256=sha256_keys(keys),
            source_digest=self.plan.digest(source),
            companions_sha256=companions_sha256(
                hashed[suffix].sha256 for suffix in companion_suffixes
            ),
            offset=offset,
        )
        quarantine = ""
        for b in bad:
            fields = {"source": source, **dataclasses.asdict(b)}
            quarantine += json.dumps(fields, ensure_ascii=False) + "\n"
        if quarantine or self.plan.existing is not None:
            self.store.write(self._record(source, ".bad"), quarantine)
        self.store.write(self._record(source), to_json(dataclasses.asdict(info)))
        return info

    def _write_files(
        self, source: str, keys: Sequence[str], rows: np.ndarray | BufferedRows
    ) -> tuple[dict[str, Hashed], int | None]:
        """Write the files of a shard; return suffix -> closed file, and the offset of its rows."""
        names = self._names(self._files[source])
        parts = {suffix: self.store.part(name) for suffix, name in names.items()}
        try:
            hashed = {suffix: Hashed(part) for suffix, part in parts.items()}
            with contextlib.ExitStack() as stack:
                files = {}
                for suffix, raw in hashed.items():
                    files[suffix] = stack.enter_context(io.BufferedWriter(raw, BUFFER))
                try:
                    offset = self.format.write(files, list(keys), rows)
                except CacheError as error:
                    raise CacheError(f"{source}, {error}") from error
            for suffix, name in names.items():
                self.store.commit(parts[suffix], name)
        except BaseException:
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise
        return hashed, offset

    def _names(self, file: str) -> dict[str, str]:
        """Return suffix -> file name of a shard and its companions; the shard itself is last."""
        suffixes = self.format.SUFFIXES
        stem = file.removesuffix(suffixes[-1])
        return {suffix: stem + suffix for suffix in suffixes}

    def forget(self) -> None:
        """Remove finished shards that are in no cache yet; the next run reads every row again."""
        self.store.remove(PARTIAL)
        if self.plan.existing is not None:
            return
        for info in self.done.values():
            for name in self._names(info.file).values():
                self.store.remove(name)

    def seal(self) -> Manifest:
        """Write ``quarantine.jsonl`` and, last of all, ``manifest.json``.

        Of several processes one writes them, and all return the same manifest. Raises CacheError
        when a shard is missing.
        """
        if self.finished is not None:
            return self.finished
        try:
            with self.store.claim(f"{PARTIAL}/seal.lock", wait=True) or Claim():
                self._look_again([])
                if self.finished is None:
                    self.finished = self._seal()
                return self.finished
        except OSError as error:
            raise CacheError(
                f"{self.store}: cannot be finished ({error.strerror or error}); every shard is"
                " kept. Fix: make room, then run the same command again"
            ) from error

    def _seal(self) -> Manifest:
        missing = self.missing()
        if missing:
            raise CacheError(
                f"{self.store}: {len(missing)} shards are not written yet, the first is"
                f" {missing[0]}. Fix: run the same extraction again"
            )
        shards = tuple(self.done[name] for name, _ in self.sources)
        manifest = dataclasses.replace(self.header, shards=shards)
        quarantine = self.quarantined()
        self._look_again([])
        if self.finished is not None:  # by another process, where the disk has no locks
            return self.finished
        if quarantine:
            self.store.write(QUARANTINE, quarantine)
        self.store.write(REPLACED, to_json(self._replaced_files(manifest)))
        self.store.write(FILE, manifest.to_json())
        self._remove_replaced(manifest)
        self.store.remove(PARTIAL)
        return manifest

    def quarantined(self) -> str:
        """Return the lines of ``quarantine.jsonl``: all quarantined rows so far.

        They are in the order of the sources.
        """
        existing = self._existing_quarantine()
        lines = []
        for name, _ in self.sources:
            written = self.store.read(self._record(name, ".bad"))
            lines.append(existing.get(name, "") if written is None else written)
        return "".join(lines)

    def _existing_quarantine(self) -> dict[str, str]:
        """Return source -> its lines in ``quarantine.jsonl`` of the existing cache."""
        by_source: dict[str, list[str]] = {}
        if self.plan.existing is None:
            return {}
        text = text_of(self.store, QUARANTINE) or ""
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            try:
                source = parse_json(line)["source"]
                by_source.setdefault(source, []).append(line)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                where = f"{self.store.where(QUARANTINE)}, line {number}"
                raise CacheError(
                    f"{where}: cannot be read ({error}). Fix: restore the file, or remove it"
                ) from error
        return {source: "".join(lines) for source, lines in by_source.items()}

    def _replaced_files(self, manifest: Manifest) -> list[str]:
        """Return the files of the existing cache's shards that ``manifest`` does not name."""
        if self.plan.existing is None:
            return []
        named = {shard.file for shard in manifest.shards}
        files: list[str] = []
        for shard in self.plan.existing.shards:
            if shard.file not in named:
                files += self._names(shard.file).values()
        return files

    def _remove_replaced(self, manifest: Manifest) -> None:
        """Remove the files that were listed as replaced and that ``manifest`` does not name.

        A removal that was interrupted is finished by the next run.
        """
        named: set[str] = set()
        for shard in manifest.shards:
            named.update(self._names(shard.file).values())
        try:
            listed = parse_json(text_of(self.store, REPLACED) or "[]")
        except ValueError:
            listed = []
        if not isinstance(listed, list):
            listed = []
        for file in listed:
            if isinstance(file, str) and file not in named:
                self.store.remove(file)
        if not any(shard.bad for shard in manifest.shards):
            self.store.remove(QUARANTINE)
