"""Estimate what an extraction would take: bytes, rows and time.

A small probe is encoded; nothing is written to ``--out``.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
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
from dimefm.extract.stages.base import Settings, Stage
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.models.encoder import Encoder
from dimefm.storage.remote import is_url

PROBE_BATCHES = 3  # the first one warms up and is not timed


@dataclass(frozen=True)
class Estimate:
    """What an extraction would take.

    ``bytes`` is the size of all shards, ``seconds`` the time of one process on this machine, and
    ``probed`` the number of rows that were encoded to find out. ``free`` is the number of free
    bytes on the disk, None for a URL.
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
        """Return a human-readable summary of a few lines."""
        header = self.header
        shards = "shard" if self.shards == 1 else "shards"
        bytes_per_row = self.bytes / max(self.rows, 1)
        rows_per_second = self.rows / max(self.seconds, 1e-9)
        size = (
            f"  about {_size(self.bytes)} as {header.format} {header.dtype}[{header.dim}],"
            f" {bytes_per_row:,.0f} bytes/row"
        )
        if self.free is not None:
            size += f"; {_size(self.free)} are free"
        lines = [
            f"{self.kind}s: {self.rows:,} rows in {self.shards:,} {shards}",
            size,
            f"  about {duration(self.seconds)} at {rows_per_second:,.0f} rows/s"
            f" (probe of {self.probed:,} rows)",
        ]
        if self.free is not None and self.bytes > self.free:
            lines.append("  this does not fit on the disk")
        return "\n".join(lines)


def estimate(encoder: Encoder, rows: Rows, kind: str, out: str, settings: Settings) -> Estimate:
    """Encode a few evenly spaced rows and return what all rows would take.

    The probe is written to a temporary folder, which is removed. Raises DataError when there are no
    rows or no row of the probe can be encoded.
    """
    stage = stage_of(kind, encoder, settings)
    stage.resolve_precision(out, read_plan(out))
    indexes = [stage.index(shard) for shard in rows.shards]
    total = sum(stage.row_count(index) for index in indexes)
    rows_per_batch = stage.chunk_size() if kind == "image" else settings.batch_size
    probe_rows = PROBE_BATCHES * rows_per_batch
    batches, finished_at = _probe(stage, indexes, probe_rows)
    probed = sum(len(vectors) for vectors in batches)
    if not probed:
        raise DataError(
            f"none of the {min(total, probe_rows)} {kind} rows of the probe could be encoded."
            " Fix: check the sources"
        )
    header = _header(encoder, kind, settings, np.concatenate(batches))
    keys = rows.shards[0].keys()[: len(batches[0])]
    empty_shard_bytes, bytes_per_row = _measure_bytes(header, keys, batches[0])
    free = None if is_url(out) else shutil.disk_usage(_nearest_folder(Path(out))).free
    return Estimate(
        kind=kind,
        rows=total,
        shards=len(indexes),
        bytes=round(empty_shard_bytes * len(indexes) + bytes_per_row * total),
        seconds=_seconds_per_row(batches, finished_at) * total,
        probed=probed,
        header=header,
        free=free,
    )


def _probe(
    stage: Stage, indexes: Sequence[SampleIndex], rows: int
) -> tuple[list[np.ndarray], list[float]]:
    """Encode ``rows`` evenly spaced rows; return (the vectors, the second of the end) by batch."""
    batches = []
    finished_at = []
    started = time.perf_counter()
    for vectors in sample(stage, indexes, rows, rows):
        batches.append(vectors)
        finished_at.append(time.perf_counter() - started)
    return batches, finished_at


def _seconds_per_row(batches: Sequence[np.ndarray], finished_at: Sequence[float]) -> float:
    """Return the seconds that a row takes, without the first batch if there are others."""
    probed = sum(len(vectors) for vectors in batches)
    timed = probed - len(batches[0])
    if timed == 0:
        return finished_at[-1] / probed
    return (finished_at[-1] - finished_at[0]) / timed


def _header(encoder: Encoder, kind: str, settings: Settings, vectors: np.ndarray) -> Manifest:
    """Return the manifest of the probe; an int8 code is fitted on its vectors."""
    dtype = settings.dtype or plugins.module("caches", settings.format, CacheError).DEFAULT_DTYPE
    header = Manifest(
        kind,
        settings.format,
        dtype,
        encoder.card.dim,
        normalized=True,
        encoder=encoder.card,
        how={},
        libraries={},
    )
    if dtype != "int8":
        return header
    fitter = QuantizerFitter(len(vectors))
    fitter.add(vectors)
    return dataclasses.replace(header, code=fitter.code().fields())


def _measure_bytes(header: Manifest, keys: list[str], vectors: np.ndarray) -> tuple[float, float]:
    """Write an empty shard and one of some rows; return (bytes of the first, bytes of a row)."""
    vectors = vectors[: len(keys)]
    keys = keys[: len(vectors)]
    sources = [("empty", 0), ("some", len(vectors))]
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(folder, header, sources)
        empty = writer.write("empty", [], vectors[:0])
        some = writer.write("some", keys, vectors)
    bytes_per_row = (some.bytes - empty.bytes) / max(len(vectors), 1)
    return empty.bytes, bytes_per_row


def _nearest_folder(path: Path) -> Path:
    """Return ``path`` if it exists, else the nearest folder above it that does."""
    path = path.absolute()
    existing = [folder for folder in (path, *path.parents) if folder.exists()]
    return existing[0]


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:,.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:,.3g} {unit}"
    return f"{count / 1000:,.3g} TB"


def duration(seconds: float) -> str:
    """Return a human-readable time, in the unit that reads best."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 100 * 3600:
        return f"{seconds / 3600:,.0f} h"
    return f"{seconds / 86400:,.0f} days"
