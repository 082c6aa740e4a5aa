"""The verb ``extract``: run an encoder once over rows and write a feature cache.

Shards of the cache correspond one to one to shards of the source, in order. A shard is the unit of work and of resume.
How rows are read, decoded and encoded stands in ``stages.py``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache import CacheWriter, Manifest
from dimefm.cache.writer import QUARANTINE, Bad
from dimefm.data import Rows, Shard
from dimefm.errors import CacheError, DataError
from dimefm.models.encoder import Encoder
from dimefm.progress import Progress
from dimefm.provenance import libraries
from dimefm.stages import Images, Settings, Stage, Texts


@dataclass
class Report:
    """What an extraction did: rows of this call, and seconds spent in each stage (read and decode add up over threads)."""

    manifest: Manifest | None = None
    out: Path = Path()
    rows_done: int = 0
    unused_captions: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "decode", "encode", "write"), 0.0))
    wall: float = 0.0
    resumed: int = 0
    already_finished: bool = False

    def describe(self) -> str:
        """Return a few lines for people."""
        if self.already_finished:
            return f"{self.out}: finished already, {self.manifest.rows:,} rows; nothing to do"
        shards = self.manifest.shards
        bad = sum(len(shard.bad) for shard in shards)
        size = sum(shard.bytes for shard in shards) / max(self.manifest.rows, 1)
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        lines = [
            f"{self.out}: {self.manifest.rows + bad:,} rows in = {self.manifest.rows:,} rows out + {bad:,} quarantined"
            + (f" (listed in {self.out / QUARANTINE})" if bad else ""),
            f"  {self.manifest.format} {self.manifest.dtype}[{self.manifest.dim}], {size:.0f} bytes/row",
            f"  {self.wall:.1f} s wall, {self.rows_done / max(self.wall, 1e-9):,.0f} rows/s; {stages}",
        ]
        if self.resumed:
            lines.append(f"  {self.resumed} shards were finished by an earlier run")
        if self.unused_captions:
            lines.append(
                f"  {self.unused_captions:,} further captions of these rows were not used; --captions all encodes them"
            )
        return "\n".join(lines)


def extract(encoder: Encoder, rows: Rows, kind: str, out: Path, settings: Settings | None = None) -> Report:
    """Write the features of every row of ``rows`` (``kind`` "image" or "text") to the cache folder ``out``.

    Vectors are unit length. A row that cannot be read or encoded is quarantined with its reason; rows in = rows out + rows
    quarantined. Raises CacheError when ``out`` holds a cache made otherwise or cannot be written, DataError when there are
    no rows or not one of them could be used.
    """
    if not len(rows):
        raise DataError(f"the {kind} sources hold no rows ({', '.join(shard.name for shard in rows.shards)}); check them")
    settings = settings or Settings()
    stage = (Images if kind == "image" else Texts)(encoder, settings)
    counted = [(shard.name, stage.count(shard)) for shard in rows.shards]
    header = _header(encoder, kind, settings, stage.how)
    writer = CacheWriter(out, header, counted, {shard.name: shard.digest() for shard in rows.shards})
    report = Report(out=out, resumed=len(writer.done))
    if writer.finished is not None:
        report.manifest, report.already_finished = writer.finished, True
        return report
    started = time.perf_counter()
    todo = [(shard, n) for shard, (name, n) in zip(rows.shards, counted, strict=True) if name not in writer]
    with Progress(sum(n for _, n in todo), f"{kind}s", "row", quiet=not settings.progress) as bar:
        for shard, n in todo:
            _shard(shard, n, stage, writer, report, bar)
    _refuse_nothing(writer, out)
    report.manifest = writer.seal()
    report.wall = time.perf_counter() - started
    return report


def _refuse_nothing(writer: CacheWriter, out: Path) -> None:
    """Raise DataError when there were rows and not one of them could be used; such a cache is not sealed."""
    read = sum(info.source_rows for info in writer.done.values())
    if read and not any(info.rows for info in writer.done.values()):
        reasons = sorted((out / ".partial").glob("*.bad"))
        first = json.loads(reasons[0].read_text(encoding="utf-8").splitlines()[0])
        writer.forget()
        raise DataError(
            f"{out}: none of the {read} rows could be used, so no cache was made; the first, {first['source']} row "
            f"{first['row']}: {first['reason']}; mend the source, then run the same command again"
        )


def _header(encoder: Encoder, kind: str, settings: Settings, how: dict) -> Manifest:
    dtype = settings.dtype or plugins.module("caches", settings.format, CacheError).DEFAULT_DTYPE
    how = {"precision": encoder.precision, **how}
    return Manifest(kind, settings.format, dtype, encoder.card.dim, True, encoder.card, how, libraries())


def _shard(shard: Shard, n: int, stage: Stage, writer: CacheWriter, report: Report, bar: Progress) -> None:
    keys, vectors, bad = [], [], []
    for batch in stage.batches(shard, n):
        bad += batch.bad
        report.seconds["read"] += batch.read
        report.seconds["decode"] += batch.decode
        report.unused_captions += batch.unused
        if batch.keys:
            started = time.perf_counter()
            found = stage.encode(batch.inputs).cpu().numpy()
            report.seconds["encode"] += time.perf_counter() - started
            good = np.isfinite(found).all(1) & (np.linalg.norm(found, axis=1) > 0.5)
            for i in np.flatnonzero(~good):
                bad.append(Bad(batch.numbers[i], batch.keys[i], "the encoder's feature is not finite or has no length"))
            keys += [batch.keys[i] for i in np.flatnonzero(good)]
            vectors.append(found[good])
        bar.update(len(batch.numbers) + len(batch.bad))
    rows = np.concatenate(vectors) if vectors else np.empty((0, writer.header.dim), dtype=np.float32)
    started = time.perf_counter()
    writer.write(shard.name, keys, rows, bad)
    report.seconds["write"] += time.perf_counter() - started
    report.rows_done += len(keys) + len(bad)
