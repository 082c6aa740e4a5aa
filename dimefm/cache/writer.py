"""Writing a cache shard by shard; the manifest comes last and only when every shard is there.

While a cache is being made, ``.partial/plan.json`` states what it will be and ``.partial/<shard>.json`` that a shard is
finished. A second run with the same plan goes on at the first missing shard; with another plan it is refused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache.files import commit, companions_sha256, sha256_file, sha256_keys, to_json, write_text
from dimefm.cache.manifest import FILE, Manifest, ShardInfo, differences
from dimefm.errors import CacheError

QUARANTINE = "quarantine.jsonl"


@dataclasses.dataclass(frozen=True)
class Bad:
    """One quarantined row: its number in the source shard, its key if it has one, and why."""

    row: int
    key: str
    reason: str


class CacheWriter:
    """Writes one cache folder.

    ``header`` is a :class:`Manifest` without shards; ``sources`` are (name, rows) of every source shard in order, and
    ``digests`` name -> content digest of those where it is known. Raises CacheError when two sources have one name, or the
    folder holds another cache, naming each field that differs.
    """

    def __init__(
        self, root: Path, header: Manifest, sources: Sequence[tuple[str, int]], digests: Mapping[str, str] | None = None
    ):
        self.root, self.header, self.sources, self.digests = root, header, list(sources), dict(digests or {})
        twice = [name for name, count in Counter(name for name, _ in self.sources).items() if count > 1]
        if twice:
            raise CacheError(f"{root}: two sources are both called {twice[0]}; give a --dataroot that holds them all")
        self.partial = root / ".partial"
        self.format = plugins.module("caches", header.format, CacheError)
        self.done: dict[str, ShardInfo] = {}
        self.finished: Manifest | None = None
        self._files = shard_files([name for name, _ in self.sources], self.format.SUFFIXES[-1])
        try:
            self._open()
        except OSError as error:
            raise CacheError(f"{root}: cannot be written ({error.strerror}); choose another --out") from error

    def _open(self) -> None:
        plan = {**self.header.header(), "sources": [[name, rows, self._digest(name)] for name, rows in self.sources]}
        if (self.root / FILE).exists():
            found = Manifest.read(self.root)
            self._same(
                plan, {**found.header(), "sources": [[s.source, s.source_rows, s.source_digest] for s in found.shards]}
            )
            self._refuse_lost(found)
            self.finished = found
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        self.partial.mkdir(parents=True, exist_ok=True)
        path = self.partial / "plan.json"
        if path.exists():
            self._same(plan, json.loads(path.read_text(encoding="utf-8")))
        write_text(path, to_json(plan))
        for name, rows in self.sources:
            self._recall(name, rows)

    def _refuse_lost(self, found: Manifest) -> None:
        """Raise CacheError when a finished cache has lost a shard, or one has another size than recorded."""
        for info in found.shards:
            path = self.root / info.file
            if not path.is_file() or path.stat().st_size != info.bytes:
                raise CacheError(
                    f"{path}: missing, or not of the {info.bytes} bytes that the manifest says; restore it, or remove "
                    f"{self.root} and run the same command again"
                )

    def _digest(self, source: str) -> str:
        return self.digests.get(source, "")

    def _same(self, plan: dict, found: dict) -> None:
        plan, found = json.loads(json.dumps(plan)), json.loads(json.dumps(found))
        found["libraries"], found["encoder"]["name"] = plan["libraries"], plan["encoder"]["name"]  # allowed to differ
        different = differences(plan, found)
        if different:
            raise CacheError(
                f"{self.root} already holds a cache made otherwise ({'; '.join(different)}: this run against the folder); "
                "give another --out, or remove that folder"
            )

    def _recall(self, source: str, rows: int) -> None:
        """Take up a shard that an earlier run finished, if its file is still what its record says."""
        record = self._record(source)
        if not record.exists():
            return
        fields = json.loads(record.read_text(encoding="utf-8"))
        info = ShardInfo(**{**fields, "bad": tuple(fields["bad"])})
        path = self.root / info.file
        whole = path.is_file() and path.stat().st_size == info.bytes
        if whole and (info.source_rows, info.source_digest) == (rows, self._digest(source)):
            self.done[source] = info

    def _record(self, source: str) -> Path:
        return self.partial / (self._files[source].replace("/", "%2F") + ".json")

    def __contains__(self, source: str) -> bool:
        return self.finished is not None or source in self.done

    def write(self, source: str, keys: Sequence[str], rows: np.ndarray, bad: Sequence[Bad] = ()) -> ShardInfo:
        """Write one whole shard; once this returns it survives a crash.

        ``rows`` is [len(keys), dim], finite, in source order; ``bad`` are the rows that are missing from it.
        """
        bad = sorted(bad, key=lambda b: b.row)
        self._whole(source, len(keys), [b.row for b in bad])
        if rows.shape != (len(keys), self.header.dim):
            raise CacheError(f"{source}: rows are {rows.shape}, expected {(len(keys), self.header.dim)}")
        with np.errstate(over="ignore"):
            rows = rows.astype(self.header.dtype)
        if not np.isfinite(rows).all():
            row = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise CacheError(
                f"{source}, stored row {row}: the vector is not finite as {self.header.dtype}; quarantine it before writing"
            )
        try:
            info = self._write(source, keys, rows, bad)
        except OSError as error:
            raise CacheError(
                f"{self.root}: shard for {source} could not be written ({error.strerror or error}); finished shards are "
                "kept: make room, then run the same command again"
            ) from error
        self.done[source] = info
        return info

    def _whole(self, source: str, stored: int, bad: list[int]) -> None:
        """Raise CacheError unless the stored and the bad rows are all rows of the source, each once."""
        planned = dict(self.sources).get(source)
        if planned is None:
            raise CacheError(f"{source} is no shard of this cache; it has {', '.join(name for name, _ in self.sources[:4])}")
        if stored + len(bad) != planned or len(set(bad)) < len(bad) or (bad and not 0 <= bad[0] <= bad[-1] < planned):
            raise CacheError(f"{source}: {planned} rows in, but {stored} out and rows {bad[:8]} bad; they must add up")

    def _write(self, source: str, keys: Sequence[str], rows: np.ndarray, bad: list[Bad]) -> ShardInfo:
        final = self.root / self._files[source]
        final.parent.mkdir(parents=True, exist_ok=True)
        main = self.format.SUFFIXES[-1]
        finals = {suffix: final.with_name(final.name.removesuffix(main) + suffix) for suffix in self.format.SUFFIXES}
        parts = {suffix: path.with_name(path.name + ".part") for suffix, path in finals.items()}
        try:
            self.format.write(parts, list(keys), rows)
        except CacheError as error:
            raise CacheError(f"{source}, {error}") from error
        record: dict = {
            "file": self._files[source],
            "source": source,
            "source_rows": len(keys) + len(bad),
            "rows": len(keys),
            "bad": [b.row for b in bad],
            "bytes": parts[main].stat().st_size,
            "sha256": sha256_file(parts[main]),
            "keys_sha256": sha256_keys(keys),
            "source_digest": self._digest(source),
            "companions_sha256": companions_sha256(parts[suffix] for suffix in self.format.SUFFIXES[:-1]),
        }
        for suffix in self.format.SUFFIXES:
            commit(parts[suffix], finals[suffix])
        if bad:
            lines = [json.dumps({"source": source, **dataclasses.asdict(b)}, ensure_ascii=False) for b in bad]
            write_text(self._record(source).with_suffix(".bad"), "\n".join(lines) + "\n")
        write_text(self._record(source), to_json(record))
        return ShardInfo(**{**record, "bad": tuple(record["bad"])})

    def forget(self) -> None:
        """Drop the records of finished shards, so that the next run reads every row again."""
        shutil.rmtree(self.partial)

    def seal(self) -> Manifest:
        """Write ``quarantine.jsonl`` and, last of all, ``manifest.json``; raise CacheError when a shard is missing."""
        if self.finished is not None:
            return self.finished
        missing = [name for name, _ in self.sources if name not in self.done]
        if missing:
            raise CacheError(f"{self.root}: {len(missing)} shards are not written yet, the first is {missing[0]}")
        bad = [self._record(name).with_suffix(".bad") for name, _ in self.sources]
        listed = "".join(path.read_text(encoding="utf-8") for path in bad if path.exists())
        if listed:
            write_text(self.root / QUARANTINE, listed)
        manifest = dataclasses.replace(self.header, shards=tuple(self.done[name] for name, _ in self.sources))
        write_text(self.root / FILE, manifest.to_json())
        shutil.rmtree(self.partial)
        self.finished = manifest
        return manifest


def shard_files(sources: Sequence[str], suffix: str) -> dict[str, str]:
    """Return source name -> shard file: the source's last extension replaced by ``.feat`` and the format's suffix.

    Sources that would share a file keep their extension in its name, so that each has its own.
    """
    stems = {name: name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name for name in sources}
    while len(shared := {stem for stem, count in Counter(stems.values()).items() if count > 1}):
        stems = {name: name if stem in shared else stem for name, stem in stems.items()}
    return {name: f"{stem}.feat{suffix}" for name, stem in stems.items()}
