"""The verb ``extract``: encode rows once, with one or several encoders, and write feature caches.

The shards of a cache correspond one to one to the shards of the source, in order. A shard is the
unit of work and of resume. The stages (``stages/``) read, decode and encode rows; ``stream.py``
and ``pipeline.py`` move them through threads to the cache.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dimefm import plugins
from dimefm.cache import CacheWriter, FeatureCache, Manifest
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cache.manifest import FILE as MANIFEST
from dimefm.cache.plan import SKIPPED, plan_lock, read_plan, write_lock
from dimefm.data import Rows, Shard
from dimefm.data.grown_folders import as_cached
from dimefm.errors import CacheError, DataError, RecipeError
from dimefm.extract.pipeline import CacheJob, run
from dimefm.extract.report import Report
from dimefm.extract.shard_writer import usable_rows
from dimefm.extract.sharding import ALL, Share
from dimefm.extract.stages.base import Settings, Stage
from dimefm.extract.stages.images import Images
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.extract.stages.texts import Texts
from dimefm.extract.stages.tokens import PatchTokenStage
from dimefm.models.encoder import Encoder
from dimefm.runtime.progress import Progress
from dimefm.runtime.torchrun import end_with_torchrun
from dimefm.runtime.versions import libraries
from dimefm.storage.files import to_json
from dimefm.storage.stores import open_store

Mode = Literal["create", "append", "retry"]
POLL_SECONDS = 0.5  # between two looks at what other processes have finished

# An int8 code is fitted on one row in 50, but on this many rows at least and at most.
FIT_FRACTION = 50
FIT_ROWS_MIN = 4096
FIT_ROWS_MAX = 131_072


def extract(
    encoder: Encoder,
    rows: Rows,
    kind: str,
    out: str | Path,
    settings: Settings | None = None,
    *,
    mode: Mode = "create",
    scratch: str | None = None,
    share: Share = ALL,
) -> Report:
    """Write the features of every row of ``rows`` to the cache at ``out``, a folder or URL.

    ``kind`` is "image" or "text". The stored vectors have unit length. A row that cannot be read or
    encoded is quarantined with its reason: rows in = rows out + rows quarantined.

    ``mode`` "append" adds the shards that a finished cache lacks. "retry" encodes its quarantined
    rows again, or every row of such a shard if its source has changed.

    Several processes may create one cache: each takes shards that no other process has claimed, in
    the order of its ``share``, and all return when the cache is finished. A process whose share is
    a part of the shards returns when this part is finished.

    Raises CacheError when ``out`` holds a cache made with other settings or cannot be written, and
    DataError when there are no rows, no row can be used, or a source changes while it is read.
    """
    caches = [(encoder, out)]
    reports = extract_several(caches, rows, kind, settings, mode=mode, scratch=scratch, share=share)
    return reports[0]


def extract_several(
    caches: Sequence[tuple[Encoder, str | Path]],
    rows: Rows,
    kind: str,
    settings: Settings | None = None,
    *,
    mode: Mode = "create",
    scratch: str | None = None,
    share: Share = ALL,
) -> list[Report]:
    """Write one cache for each (encoder, folder or URL) in one pass; return their reports in order.

    Each cache is the same as :func:`extract` makes with its encoder alone, and resumes by itself.
    An image is read and decoded once for all encoders that lack its shard; texts share nothing. The
    encoders are on one device.

    Raises as :func:`extract` does, and RecipeError for ``auto_batch`` with several encoders.
    """
    settings = settings or Settings()
    end_with_torchrun()
    if not len(rows):
        names = ", ".join(shard.name for shard in rows.shards)
        raise DataError(f"the {kind} sources hold no rows ({names}). Fix: check the sources")
    if len(caches) > 1 and settings.auto_batch:
        raise RecipeError(
            "--batch-size auto measures one teacher. Fix: give several teachers a number"
        )
    rows = _as_cached(rows, [out for _, out in caches], scratch)
    stages = [stage_of(kind, encoder, settings) for encoder, _ in caches]
    with contextlib.ExitStack() as locks:
        jobs = []
        shared = mode == "create"
        needs_lock = share.needs_locks
        for stage, (_, out) in zip(stages, caches, strict=True):
            locks.enter_context(
                write_lock(out, shared=shared, scratch=scratch, needs_lock=needs_lock)
            )
            job = _open_job(stage, kind, rows, out, mode, scratch)
            job.report.skipped = rows.skipped
            job.report.selection = rows.selection
            jobs.append(job)
        unfinished = [job for job in jobs if not job.report.already_finished]
        if unfinished:
            _fill(unfinished, kind, share.of(rows.shards), wait=share.whole)
    return [job.report for job in jobs]


def _as_cached(rows: Rows, outs: Sequence[str | Path], scratch: str | None) -> Rows:
    """Return rows with folders that have grown divided as the first finished cache divides them."""
    for out in outs:
        store = open_store(out, scratch)
        if store.size(MANIFEST) is not None:
            divided = as_cached(rows, FeatureCache(out, scratch))
            if divided is not rows:
                return divided
    return rows


def stage_of(kind: str, encoder: Encoder, settings: Settings) -> Stage:
    """Return the stage that reads and encodes rows of ``kind``."""
    stage = Images(encoder, settings) if kind == "image" else Texts(encoder, settings)
    if settings.tokens is None:
        return stage
    return PatchTokenStage(stage, settings.tokens)


def _fill(jobs: Sequence[CacheJob], kind: str, shards: Sequence[Shard], wait: bool) -> None:
    """Write the shards that the caches lack, and seal each cache that is complete.

    With ``wait``, continue until the shards of other processes are finished or free again.
    """
    started = time.perf_counter()
    quiet = not jobs[0].stage.settings.progress
    with Progress(_rows_to_do(jobs, shards), f"{kind}s", "row", quiet=quiet) as bar:
        run(jobs, shards, bar)
        while wait and any(job.cache.missing(look=True) for job in jobs):
            bar.update(0, note="waiting for other processes")
            time.sleep(POLL_SECONDS)
            run(jobs, shards, bar)
    for job in jobs:
        job.report.missing = len(job.cache.missing(look=True))
        if not job.report.missing:
            _refuse_no_usable_rows(job.cache)
            _note_skipped(job)
            job.report.manifest = job.cache.seal()
        job.report.wall = time.perf_counter() - started


def _note_skipped(job: CacheJob) -> None:
    """Write what the sources hold besides rows next to the manifest."""
    skipped = job.report.skipped
    if not skipped:
        return
    try:
        job.cache.store.write(SKIPPED, to_json(skipped.fields()))
    except OSError as error:
        raise CacheError(
            f"{job.cache.store}: {SKIPPED} cannot be written ({error.strerror or error}). Fix: make"
            " room, then run the same command again"
        ) from error


def _rows_to_do(jobs: Sequence[CacheJob], shards: Sequence[Shard]) -> int:
    """Return how many rows the caches lack."""
    rows = 0
    for job in jobs:
        for shard in shards:
            if shard.name not in job.cache:
                rows += job.rows_of[shard.name]
    return rows


def _refuse_no_usable_rows(cache: CacheWriter) -> None:
    """Raise DataError when there were rows but none of them could be used."""
    shards = cache.done.values()
    source_rows = sum(shard.source_rows for shard in shards)
    if not source_rows or any(shard.rows for shard in shards):
        return
    first = ""
    listed = cache.quarantined().splitlines()
    if listed:
        entry = json.loads(listed[0])
        first = f"; the first, {entry['source']} row {entry['row']}: {entry['reason']}"
    cache.forget()
    raise DataError(
        f"{cache.store}: none of the {source_rows} rows could be used, so no cache was made{first}."
        " Fix: correct the source and run the same command again"
    )


def _open_job(
    stage: Stage, kind: str, rows: Rows, out: str | Path, mode: Mode, scratch: str | None
) -> CacheJob:
    """Open the cache at ``out``; the report of the job says whether it is finished already."""
    indexes = {shard.name: stage.index(shard) for shard in rows.shards}
    cache = _open_cache(stage, kind, indexes, out, mode, scratch)
    report = Report(out=str(cache.store))
    report.manifest = cache.finished
    report.already_finished = cache.finished is not None
    if mode == "create":
        report.resumed = len(cache.done)
    return CacheJob(stage, indexes, cache, report, scratch)


def _open_cache(
    stage: Stage,
    kind: str,
    indexes: Mapping[str, SampleIndex],
    out: str | Path,
    mode: Mode,
    scratch: str | None,
) -> CacheWriter:
    """Open the cache at ``out`` for writing.

    Processes that start together do this one after another, so that all have one int8 code.
    """
    with plan_lock(out, scratch):
        before = read_plan(out, scratch)
        stage.resolve_precision(out, before)
        header = _header(stage, kind, before, list(indexes.values()))
        row_counts = [(name, stage.row_count(index)) for name, index in indexes.items()]
        digests = {name: index.shard.digest() for name, index in indexes.items()}
        cache = CacheWriter(
            out,
            header,
            row_counts,
            digests,
            append=mode == "append",
            retry=mode == "retry",
            scratch=scratch,
        )
        text_views = stage.settings.text_views
        if kind == "text" and text_views is not None and cache.finished is None:
            text_views.keep(cache.store)
        return cache


def _header(
    stage: Stage, kind: str, before: Manifest | None, indexes: Sequence[SampleIndex]
) -> Manifest:
    """Return the manifest without shards.

    An int8 code is that of the cache ``before``; without one it is fitted on a sample.
    """
    settings = stage.settings
    card = stage.encoder.card
    dtype = settings.dtype or _usual_dtype(settings.format, before)
    code = None
    error = None
    if dtype == "int8" and before is not None and before.dtype == "int8":
        code = before.code
        error = before.quantization_error
    elif dtype == "int8":
        code, error = _fit_int8(stage, indexes)
    return Manifest(
        kind,
        settings.format,
        dtype,
        card.dim,
        normalized=True,
        encoder=card,
        how={"precision": stage.encoder.precision, **stage.how},
        libraries=libraries(),
        code=code,
        quantization_error=error,
    )


def _usual_dtype(format_: str, before: Manifest | None) -> str:
    """Return the dtype where none is set: that of the cache ``before``, else the format's."""
    if before is not None and before.format == format_:
        return before.dtype
    return plugins.module("caches", format_, CacheError).DEFAULT_DTYPE


def _fit_int8(stage: Stage, indexes: Sequence[SampleIndex]) -> tuple[dict, dict]:
    """Return (int8 code, its quantization error), fitted on a sample of the rows."""
    total = sum(stage.row_count(index) for index in indexes)
    fitter = QuantizerFitter(min(total, FIT_ROWS_MAX))
    for vectors in sample(stage, indexes, FIT_ROWS_MIN, FIT_ROWS_MAX):
        fitter.add(vectors)
    code = fitter.code()
    error = fitter.quantization_error(code, stage.encoder.card.logit_scale)
    return code.fields(), error


def sample(
    stage: Stage, indexes: Sequence[SampleIndex], least: int, most: int
) -> Iterator[np.ndarray]:
    """Yield float32 vectors [n, dim] of evenly spaced rows of all shards, batch by batch.

    One row in 50 is taken, but ``least`` to ``most`` rows. The rows of one sample of a shard are
    taken together. Rows that cannot be used are left out.
    """
    total = sum(stage.row_count(index) for index in indexes)
    wanted = _evenly_spaced(total, stage.rows_per_item, least, most)
    start = 0
    for index in indexes:
        end = start + stage.row_count(index)
        first, last = np.searchsorted(wanted, (start, end))
        numbers = wanted[first:last] - start
        for batch in stage.batches(index, numbers.tolist()):
            if batch.inputs is not None:
                vectors = stage.encode(batch.inputs).cpu().numpy()
                yield vectors[usable_rows(vectors)]
        start = end


def _evenly_spaced(total: int, rows_per_item: int, least: int, most: int) -> np.ndarray:
    """Return the numbers of the sampled rows among ``total`` rows, ascending, int64 [n]."""
    rows = min(total // FIT_FRACTION, most)
    rows = min(total, max(least, rows))
    items = max(1, rows // rows_per_item)
    last_item = total // rows_per_item - 1
    first_rows = np.linspace(0, last_item, items).astype(np.int64) * rows_per_item
    return (first_rows[:, None] + np.arange(rows_per_item)).reshape(-1)
