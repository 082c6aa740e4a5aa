"""The verb ``extract``: run an encoder once over rows and write a feature cache.

Shards of the cache correspond one to one to shards of the source, in order. A shard is the unit of work and of resume.
How rows are read, decoded and encoded stands in ``stages.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dimefm import plugins
from dimefm.cache import CacheWriter, FeatureCache, Manifest, ShardInfo
from dimefm.cache.code import Fit
from dimefm.cache.spool import Spool, stored
from dimefm.cache.writer import QUARANTINE, Bad, planned
from dimefm.data import Rows, Shard
from dimefm.errors import CacheError, DataError
from dimefm.models.encoder import Encoder
from dimefm.progress import Progress
from dimefm.provenance import libraries
from dimefm.stages import Images, Settings, Stage, Texts

Mode = Literal["create", "append", "retry"]
SAMPLED = (4096, 131_072)  # rows that an int8 code is fitted on: a fiftieth of all, at least and at most these


@dataclass
class Report:
    """What an extraction did: rows of this call, and seconds spent in each stage (read and decode add up over threads)."""

    manifest: Manifest | None = None
    out: str = ""
    rows_done: int = 0
    unused_captions: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "decode", "encode", "write"), 0.0))
    wall: float = 0.0
    resumed: int = 0
    tried: int = 0
    recovered: int = 0
    already_finished: bool = False

    def describe(self) -> str:
        """Return a few lines for people."""
        bad = sum(len(shard.bad) for shard in self.manifest.shards)
        if self.already_finished:
            return f"{self.out}: finished already, {self.manifest.rows:,} rows; nothing to do"
        size = sum(shard.bytes for shard in self.manifest.shards) / max(self.manifest.rows, 1)
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        lines = [
            f"{self.out}: {self.manifest.rows + bad:,} rows in = {self.manifest.rows:,} rows out + {bad:,} quarantined"
            + (f" (listed in {self.out}/{QUARANTINE})" if bad else ""),
            f"  {self.manifest.format} {self.manifest.dtype}[{self.manifest.dim}], {size:.0f} bytes/row",
            f"  {self.wall:.1f} s wall, {self.rows_done / max(self.wall, 1e-9):,.0f} rows/s; {stages}",
        ]
        if self.resumed:
            lines.append(f"  {self.resumed} shard{'s were' if self.resumed > 1 else ' was'} finished by an earlier run")
        if self.tried:
            lines.append(f"  {self.recovered:,} of {self.tried:,} quarantined rows were recovered")
        if self.unused_captions:
            lines.append(
                f"  {self.unused_captions:,} further captions of these rows were not used; --captions all encodes them"
            )
        return "\n".join(lines)


def extract(
    encoder: Encoder,
    rows: Rows,
    kind: str,
    out: str | Path,
    settings: Settings | None = None,
    *,
    mode: Mode = "create",
    scratch: str | None = None,
) -> Report:
    """Write the features of every row of ``rows`` (``kind`` "image" or "text") to the cache at ``out``, a folder or URL.

    Vectors are unit length. A row that cannot be read or encoded is quarantined with its reason; rows in = rows out + rows
    quarantined. ``mode`` "append" adds the shards that a finished cache does not have, "retry" tries its quarantined rows
    again (every row of a shard whose source has changed). Raises CacheError when ``out`` holds a cache made otherwise or
    cannot be written, DataError when there are no rows or not one of them could be used.
    """
    if not len(rows):
        raise DataError(f"the {kind} sources hold no rows ({', '.join(shard.name for shard in rows.shards)}); check them")
    stage = stage_of(kind, encoder, settings or Settings())
    counted = {shard.name: stage.count(shard) for shard in rows.shards}
    header = _header(stage, kind, planned(out, scratch), [(shard, counted[shard.name]) for shard in rows.shards])
    digests = {shard.name: shard.digest() for shard in rows.shards}
    modes = {"append": mode == "append", "retry": mode == "retry"}
    writer = CacheWriter(out, header, list(counted.items()), digests, **modes, scratch=scratch)
    report = Report(out=str(writer.store), resumed=len(writer.done) if mode == "create" else 0)
    if writer.finished is not None:
        report.manifest, report.already_finished = writer.finished, True
        return report
    started = time.perf_counter()
    todo = [shard for shard in rows.shards if shard.name not in writer]
    with Progress(sum(counted[shard.name] for shard in todo), f"{kind}s", "row", quiet=not stage.settings.progress) as bar:
        for shard in todo:
            _Work(stage, writer, report, bar, scratch).shard(shard, counted[shard.name])
    _refuse_nothing(writer)
    report.manifest = writer.seal()
    report.wall = time.perf_counter() - started
    return report


def stage_of(kind: str, encoder: Encoder, settings: Settings) -> Stage:
    """Return what reads and encodes rows of ``kind``."""
    return (Images if kind == "image" else Texts)(encoder, settings)


def _refuse_nothing(writer: CacheWriter) -> None:
    """Raise DataError when there were rows and not one of them could be used; such a cache is not sealed."""
    read = sum(info.source_rows for info in writer.done.values())
    if read and not any(info.rows for info in writer.done.values()):
        first = json.loads(writer.quarantined().splitlines()[0])
        writer.forget()
        raise DataError(
            f"{writer.store}: none of the {read} rows could be used, so no cache was made; the first, {first['source']} row "
            f"{first['row']}: {first['reason']}; mend the source, then run the same command again"
        )


def _header(stage: Stage, kind: str, before: Manifest | None, shards: Sequence[tuple[Shard, int]]) -> Manifest:
    """Return the manifest without shards; its int8 code is that of an earlier run, else fitted on a sample now."""
    settings, card = stage.settings, stage.encoder.card
    dtype = settings.dtype or plugins.module("caches", settings.format, CacheError).DEFAULT_DTYPE
    how = {"precision": stage.encoder.precision, **stage.how}
    code, cost = None, None
    if dtype == "int8" and before is not None and before.dtype == "int8":
        code, cost = before.code, before.effect
    elif dtype == "int8":
        fit = Fit(min(sum(n for _, n in shards), SAMPLED[1]))
        for found in sample(stage, shards, *SAMPLED):
            fit.add(found)
        code, cost = fit.code().fields(), fit.effect(fit.code(), card.logit_scale)
    return Manifest(kind, settings.format, dtype, card.dim, True, card, how, libraries(), code=code, effect=cost)


def sample(stage: Stage, shards: Sequence[tuple[Shard, int]], least: int, most: int) -> Iterator[np.ndarray]:
    """Yield the float32 vectors of evenly spaced rows of all (shard, rows): a fiftieth, but ``least`` to ``most`` rows."""
    total = sum(n for _, n in shards)
    wanted = np.linspace(0, total - 1, min(total, max(least, min(total // 50, most)))).astype(np.int64)
    start = 0
    for shard, n in shards:
        here = wanted[(wanted >= start) & (wanted < start + n)] - start
        for batch in stage.batches(shard, here.tolist()):
            if batch.keys:
                found = stage.encode(batch.inputs).cpu().numpy()
                yield found[_usable(found)]
        start += n


def _usable(vectors: np.ndarray) -> np.ndarray:
    """Say of each vector whether it is finite and has a length."""
    return np.isfinite(vectors).all(1) & (np.linalg.norm(vectors, axis=1) > 0.5)


class _Work:
    """What the shards of one extraction share."""

    def __init__(self, stage: Stage, writer: CacheWriter, report: Report, bar: Progress, scratch: str | None):
        self.stage, self.writer, self.report, self.bar, self.scratch = stage, writer, report, bar, scratch

    def shard(self, shard: Shard, n: int) -> None:
        """Encode one shard and write it; of one that is retried and whose source is the same, only the quarantined rows."""
        old = self.writer.replaced(shard.name)
        if old is not None:
            self.report.tried += len(old.bad)
        if old is not None and old.source_digest == shard.digest():
            self._retry(shard, old)
            return
        bad: list[Bad] = []
        with self.writer.spool(shard.name) as spool:
            for _, keys, vectors in self._encoded(shard, range(n), bad):
                spool.add(keys, vectors)
            self._write(shard, spool, bad)
        self.report.recovered += 0 if old is None else max(0, len(old.bad) - len(bad))

    def _encoded(self, shard: Shard, numbers: Sequence[int], bad: list[Bad]) -> Iterator[tuple[list, list, np.ndarray]]:
        """Yield (row numbers, keys, vectors) of the rows that can be encoded; the others go into ``bad``."""
        seconds = self.report.seconds
        for batch in self.stage.batches(shard, numbers):
            bad += batch.bad
            seconds["read"] += batch.read
            seconds["decode"] += batch.decode
            self.report.unused_captions += batch.unused
            if batch.keys:
                started = time.perf_counter()
                found = self.stage.encode(batch.inputs).cpu().numpy()
                seconds["encode"] += time.perf_counter() - started
                usable = _usable(found)
                for i in np.flatnonzero(~usable):
                    bad.append(Bad(batch.numbers[i], batch.keys[i], "the encoder's feature is not finite or has no length"))
                good = np.flatnonzero(usable).tolist()
                yield [batch.numbers[i] for i in good], [batch.keys[i] for i in good], found[good]
            self.report.rows_done += len(batch.numbers) + len(batch.bad)
            self.bar.update(len(batch.numbers) + len(batch.bad))

    def _write(self, shard: Shard, spool: Spool, bad: list[Bad]) -> None:
        started = time.perf_counter()
        self.writer.write(shard.name, spool.keys, spool.rows(), bad)
        self.report.seconds["write"] += time.perf_counter() - started

    def _retry(self, shard: Shard, old: ShardInfo) -> None:
        """Try the quarantined rows of ``old`` again, and write the shard anew with those that can be encoded now."""
        bad: list[Bad] = []
        found = list(self._encoded(shard, old.bad, bad))
        if not found:
            self.writer.keep(old)
            return
        numbers = np.array([number for part, _, _ in found for number in part])
        keys = [key for _, part, _ in found for key in part]
        vectors = stored(np.concatenate([part for _, _, part in found]), self.writer.header, shard.name)
        with self.writer.spool(shard.name) as spool:
            _merge(spool, FeatureCache(str(self.writer.store), self.scratch), old, numbers, keys, vectors)
            self._write(shard, spool, bad)
        self.report.recovered += len(keys)


def _merge(spool: Spool, cache: FeatureCache, old: ShardInfo, numbers: np.ndarray, keys: list[str], new: np.ndarray) -> None:
    """Put the stored rows of ``old`` and the new rows of source rows ``numbers`` (ascending) together, in source order."""
    before = numbers - np.searchsorted(np.array(old.bad), numbers)  # old rows that come before each new one
    start = done = 0
    for held, rows in cache.blocks(old):
        last = start + len(held) == old.rows
        end = len(before) if last else int(np.searchsorted(before, start + len(held)))
        places = before[done:end] - start
        for place, key in reversed(list(zip(places.tolist(), keys[done:end], strict=True))):
            held.insert(place, key)
        spool.add(held, np.insert(rows, places, new[done:end], axis=0))
        start, done = start + len(rows), end
    if done < len(before):
        spool.add(keys[done:], new[done:])
