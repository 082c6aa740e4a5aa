"""The verb ``extract``: run an encoder, or several in one pass, once over rows and write a feature
cache of each.

Shards of a cache correspond one to one to shards of the source, in order. A shard is the unit of
work and of resume. How rows are read, decoded and encoded stands in ``stages.py`` and
``stream.py``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dimefm import plugins
from dimefm.cache import CacheWriter, Manifest
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cache.plan import plan_lock, read_plan, write_lock
from dimefm.data import Rows, Shard
from dimefm.errors import CacheError, DataError, RecipeError
from dimefm.extract.pipeline import CacheJob, Report, run, usable_rows
from dimefm.extract.sharding import ALL, Share
from dimefm.extract.stages.base import Settings, Stage
from dimefm.extract.stages.images import Images
from dimefm.extract.stages.texts import Texts
from dimefm.extract.stages.tokens import PatchTokenStage
from dimefm.models.encoder import Encoder
from dimefm.runtime.progress import Progress
from dimefm.runtime.versions import libraries

Mode = Literal["create", "append", "retry"]
PAUSE = 0.5  # seconds between looks at what other processes do
SAMPLED = (
    4096,
    131_072,
)  # rows that an int8 code is fitted on: a fiftieth of all, at least and at most these


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
    """Write the features of every row of ``rows`` (``kind`` "image" or "text") to the cache at
    ``out``, a folder or URL.

    Vectors are unit length. A row that cannot be read or encoded is quarantined with its reason;
    rows in = rows out + rows quarantined. ``mode`` "append" adds the shards that a finished cache
    does not have, "retry" tries its quarantined rows again (every row of a shard whose source has
    changed). Several processes may create one cache: each takes shards that no other is at, in the
    order of its ``share``, and all return when the cache is finished; one that has only a part of
    the shards returns when these are there. Raises CacheError when ``out`` holds a cache made
    otherwise or cannot be written, DataError when there are no rows, not one of them could be used,
    or a source changes while it is read.
    """
    return extract_several(
        [(encoder, out)], rows, kind, settings, mode=mode, scratch=scratch, share=share
    )[0]


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
    """Write the cache of each (encoder, folder or URL), all in one pass; return their reports in
    this order.

    Every cache is the one that :func:`extract` makes of its encoder alone, and is resumed on its
    own. An image is read and decoded once for all encoders that lack its shard; sentences have
    nothing heavy to share. The encoders are on one device. Raises as :func:`extract` does, and
    RecipeError for several encoders with ``auto_batch``, which measures one.
    """
    settings = settings or Settings()
    if not len(rows):
        raise DataError(
            f"the {kind} sources hold no rows ({', '.join(shard.name for shard in rows.shards)});"
            " check them"
        )
    if len(caches) > 1 and settings.auto_batch:
        raise RecipeError("--batch-size auto measures one teacher; give several teachers a number")
    stages = [stage_of(kind, encoder, settings) for encoder, _ in caches]
    with contextlib.ExitStack() as present:
        works = []
        for stage, (_, out) in zip(stages, caches, strict=True):
            present.enter_context(write_lock(out, shared=mode == "create", scratch=scratch))
            works.append(_work(stage, kind, rows, out, mode, scratch))
        left = [work for work in works if not work.report.already_finished]
        if left:
            _fill(left, kind, share.of(rows.shards), wait=share.whole)
    return [work.report for work in works]


def _fill(works: Sequence[CacheJob], kind: str, shards: Sequence[Shard], wait: bool) -> None:
    """Bring the caches as far as ``shards`` go, and finish those of which nothing is missing.

    With ``wait``, go on until the shards that other processes hold are there or free again.
    """
    started = time.perf_counter()
    total = sum(
        work.counted[shard.name]
        for work in works
        for shard in shards
        if shard.name not in work.writer
    )
    with Progress(total, f"{kind}s", "row", quiet=not works[0].stage.settings.progress) as bar:
        run(works, shards, bar)
        while wait and any(work.writer.missing(look=True) for work in works):
            bar.update(0, note="waiting for other processes")
            time.sleep(PAUSE)
            run(works, shards, bar)
    for work in works:
        work.report.missing = len(work.writer.missing(look=True))
        if not work.report.missing:
            _refuse_nothing(work.writer)
            work.report.manifest = work.writer.seal()
        work.report.wall = time.perf_counter() - started


def _work(
    stage: Stage, kind: str, rows: Rows, out: str | Path, mode: Mode, scratch: str | None
) -> CacheJob:
    """Return the work on the cache at ``out``; its report says so when there is none left."""
    counted = {shard.name: stage.count(shard) for shard in rows.shards}
    writer = _open_writer(stage, kind, rows, counted, out, mode, scratch)
    report = Report(out=str(writer.store), resumed=len(writer.done) if mode == "create" else 0)
    report.manifest, report.already_finished = writer.finished, writer.finished is not None
    return CacheJob(stage, writer, report, scratch)


def _open_writer(
    stage: Stage,
    kind: str,
    rows: Rows,
    counted: dict[str, int],
    out: str | Path,
    mode: Mode,
    scratch: str | None,
) -> CacheWriter:
    """Return the writer; processes that begin together do so one after another, so that all have
    one int8 code.
    """
    with plan_lock(out, scratch):
        before = read_plan(out, scratch)
        stage.resolve_precision(out, before)
        header = _header(
            stage, kind, before, [(shard, counted[shard.name]) for shard in rows.shards]
        )
        digests = {shard.name: shard.digest() for shard in rows.shards}
        modes = {"append": mode == "append", "retry": mode == "retry"}
        writer = CacheWriter(out, header, list(counted.items()), digests, **modes, scratch=scratch)
        if kind == "text" and stage.settings.text_views is not None and writer.finished is None:
            stage.settings.text_views.keep(writer.store)
        return writer


def stage_of(kind: str, encoder: Encoder, settings: Settings) -> Stage:
    """Return what reads and encodes rows of ``kind``."""
    stage = (Images if kind == "image" else Texts)(encoder, settings)
    return stage if settings.tokens is None else PatchTokenStage(stage, settings.tokens)


def _refuse_nothing(writer: CacheWriter) -> None:
    """Raise DataError when there were rows and not one of them could be used; such a cache is not
    sealed.
    """
    read = sum(info.source_rows for info in writer.done.values())
    if read and not any(info.rows for info in writer.done.values()):
        listed = writer.quarantined().splitlines()[:1]
        first = (
            "; the first, {source} row {row}: {reason}".format(**json.loads(listed[0]))
            if listed
            else ""
        )
        writer.forget()
        raise DataError(
            f"{writer.store}: none of the {read} rows could be used, so no cache was made{first};"
            " mend the source, then run the same command again"
        )


def _header(
    stage: Stage, kind: str, before: Manifest | None, shards: Sequence[tuple[Shard, int]]
) -> Manifest:
    """Return the manifest without shards; its int8 code is that of an earlier run, else fitted on a
    sample now.
    """
    settings, card = stage.settings, stage.encoder.card
    dtype = settings.dtype or plugins.module("caches", settings.format, CacheError).DEFAULT_DTYPE
    how = {"precision": stage.encoder.precision, **stage.how}
    code, cost = None, None
    if dtype == "int8" and before is not None and before.dtype == "int8":
        code, cost = before.code, before.quantization_error
    elif dtype == "int8":
        fit = QuantizerFitter(min(sum(n for _, n in shards), SAMPLED[1]))
        for found in sample(stage, shards, *SAMPLED):
            fit.add(found)
        code, cost = fit.code().fields(), fit.quantization_error(fit.code(), card.logit_scale)
    return Manifest(
        kind,
        settings.format,
        dtype,
        card.dim,
        True,
        card,
        how,
        libraries(),
        code=code,
        quantization_error=cost,
    )


def sample(
    stage: Stage, shards: Sequence[tuple[Shard, int]], least: int, most: int
) -> Iterator[np.ndarray]:
    """Yield the float32 vectors of evenly spaced rows of all (shard, rows): a fiftieth, but
    ``least`` to ``most`` rows.

    Rows that come of one input are all among them or none.
    """
    total, several = sum(n for _, n in shards), stage.rows_per_item
    inputs = max(1, min(total, max(least, min(total // 50, most))) // several)
    first = np.linspace(0, total // several - 1, inputs).astype(np.int64) * several
    wanted = (first[:, None] + np.arange(several)).reshape(-1)
    start = 0
    for shard, n in shards:
        here = wanted[(wanted >= start) & (wanted < start + n)] - start
        for batch in stage.batches(shard, here.tolist()):
            if batch.keys:
                found = stage.encode(batch.inputs).cpu().numpy()
                yield found[usable_rows(found)]
        start += n
