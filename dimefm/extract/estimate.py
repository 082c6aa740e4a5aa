"""What an extraction would take, from a small probe: bytes, rows and time, before anything is
written to ``--out``.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache import CacheWriter, Manifest
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cache.plan import read_plan
from dimefm.data import Rows
from dimefm.errors import CacheError, DataError
from dimefm.extract.extract import sample, stage_of
from dimefm.extract.stages.base import Settings
from dimefm.models.encoder import Encoder
from dimefm.storage.remote import is_url

BATCHES = 3  # of the probe; the first warms up and is not timed


@dataclass(frozen=True)
class Estimate:
    """``bytes`` of all shards, ``seconds`` of one process on this machine, and the ``probed`` rows
    they were told from.
    """

    kind: str
    rows: int
    shards: int
    bytes: int
    seconds: float
    probed: int
    header: Manifest
    free: int | None

    def describe(self) -> str:
        """Return a few lines for people."""
        each = self.bytes / max(self.rows, 1)
        lines = [
            f"{self.kind}s: {self.rows:,} rows in {self.shards:,} shard{'s' * (self.shards != 1)}",
            f"  about {_size(self.bytes)} as {self.header.format}"
            f" {self.header.dtype}[{self.header.dim}], {each:,.0f} bytes/row"
            + (f"; {_size(self.free)} are free" if self.free is not None else ""),
            (
                f"  about {duration(self.seconds)} at {self.rows / max(self.seconds, 1e-9):,.0f}"
                f" rows/s (probe of {self.probed:,} rows)"
            ),
        ]
        if self.free is not None and self.bytes > self.free:
            lines.append("  this does not fit on the disk")
        return "\n".join(lines)


def estimate(encoder: Encoder, rows: Rows, kind: str, out: str, settings: Settings) -> Estimate:
    """Encode a few evenly spaced rows, write them to a temporary folder, and return what all rows
    would take.

    Raises DataError when there are no rows or none of the probe could be encoded.
    """
    stage = stage_of(kind, encoder, settings)
    stage.resolve_precision(out, read_plan(out))
    counted = [(shard, stage.count(shard)) for shard in rows.shards]
    total = sum(n for _, n in counted)
    started, arrived, parts = time.perf_counter(), [], []
    probe = BATCHES * (stage.chunk_size() if kind == "image" else settings.batch_size)
    for found in sample(stage, counted, probe, probe):
        parts.append(found)
        arrived.append((time.perf_counter() - started, sum(map(len, parts))))
    if not arrived or not arrived[-1][1]:
        raise DataError(
            f"none of the {min(total, probe)} {kind} rows of the probe could be encoded; check the"
            " sources"
        )
    (first, warm), (last, probed) = arrived[0], arrived[-1]
    each = (last - first) / (probed - warm) if probed > warm else last / probed
    header = _header(encoder, kind, settings, np.concatenate(parts))
    size = _bytes(header, [shard.keys()[: len(parts[0])] for shard, _ in counted[:1]][0], parts[0])
    free = None if is_url(out) else shutil.disk_usage(_existing(Path(out))).free
    fixed, per_row = size
    return Estimate(
        kind,
        total,
        len(counted),
        round(fixed * len(counted) + per_row * total),
        each * total,
        probed,
        header,
        free,
    )


def _header(encoder: Encoder, kind: str, settings: Settings, rows: np.ndarray) -> Manifest:
    dtype = settings.dtype or plugins.module("caches", settings.format, CacheError).DEFAULT_DTYPE
    header = Manifest(kind, settings.format, dtype, encoder.card.dim, True, encoder.card, {}, {})
    if dtype != "int8":
        return header
    fit = QuantizerFitter(len(rows))
    fit.add(rows)
    return dataclasses.replace(header, code=fit.code().fields())


def _bytes(header: Manifest, keys: list[str], rows: np.ndarray) -> tuple[float, float]:
    """Return (bytes of an empty shard, bytes of a further row) by writing both."""
    rows = rows[: len(keys)]
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(folder, header, [("empty", 0), ("some", len(rows))])
        empty = writer.write("empty", [], rows[:0]).bytes
        some = writer.write("some", keys[: len(rows)], rows).bytes
    return empty, (some - empty) / max(len(rows), 1)


def _existing(path: Path) -> Path:
    """Return the nearest folder above ``path`` that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}" if unit != "bytes" else f"{count:,.0f} bytes"
        count /= 1000
    return f"{count:,.3g} TB"


def duration(seconds: float) -> str:
    """Return a time for people, in the unit that reads best."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"
