"""The pipeline of an extraction: claim shards, encode their rows, write them in the background.

One pass over the shards may fill the caches of several encoders. Each cache has a
:class:`CacheJob`; what all encoders need of a row is read and decoded once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

from dimefm.cache import CacheWriter
from dimefm.data import Shard
from dimefm.extract.report import Report
from dimefm.extract.shard_writer import RetriedShardWriter, ShardWriter
from dimefm.extract.stages.base import Batch, Stage
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.extract.stream import ShardTask, encoded
from dimefm.models.inference.text_batches import SeenSentences
from dimefm.runtime.progress import Progress
from dimefm.runtime.threads import BackgroundWriter, encode_thread_count


class ClaimedShard(ShardTask):
    """A shard that this process has claimed for one cache.

    It joins two sides: the task is for the reader threads and the main thread, ``writer`` for the
    writer thread.
    """

    def __init__(
        self,
        job: CacheJob,
        index: SampleIndex,
        numbers: Sequence[int],
        seen: SeenSentences | None,
        writer: ShardWriter,
    ):
        super().__init__(job.stage, index, numbers, seen)
        self.job = job
        self.writer = writer


class CacheJob:
    """What one process does for one cache: it claims shards and passes on their embeddings.

    ``indexes`` has the :class:`SampleIndex` of each shard, by the shard's name.
    """

    def __init__(
        self,
        stage: Stage,
        indexes: Mapping[str, SampleIndex],
        cache: CacheWriter,
        report: Report,
        scratch: str | None,
    ):
        self.stage = stage
        self.indexes = indexes
        self.cache = cache
        self.report = report
        self.scratch = scratch
        self.rows_of = dict(cache.sources)
        self._open_writers: set[ShardWriter] = set()
        report.encode_threads = encode_thread_count(stage.encoder.device)

    def claim(self, shard: Shard) -> ClaimedShard | None:
        """Claim a shard; None when it is finished or another process has claimed it."""
        claim = self.cache.claim(shard.name)
        if claim is None:
            return None
        index = self.indexes[shard.name]
        replaced = self.cache.replaced(shard.name)
        writer: ShardWriter
        if replaced is not None and replaced.source_digest == shard.digest():
            # Repeats are encoded again: a repeat is stored as the buffer row of an earlier vector,
            # and the vectors of retried rows are buffered only when the shard is complete.
            writer = RetriedShardWriter(
                self.cache, shard, claim, self.report, replaced, self.scratch
            )
            claimed = ClaimedShard(self, index, replaced.bad, None, writer)
        else:
            writer = ShardWriter(self.cache, shard, claim, self.report, replaced)
            numbers = range(self.rows_of[shard.name])
            claimed = ClaimedShard(self, index, numbers, SeenSentences(), writer)
        self._open_writers.add(writer)
        return claimed

    def pass_on(self, batch: Batch, writer: ShardWriter, background: BackgroundWriter) -> int:
        """Pass an encoded batch to the thread that writes; return how many rows the batch has."""
        report = self.report
        vectors = None
        if batch.pending is not None:
            vectors, encode_seconds = batch.pending.fetch()
            report.seconds["encode"] += encode_seconds
        background.submit(writer.add, batch, vectors)
        if batch.last:
            background.submit(self._finish, writer)
        report.seconds["read"] += batch.read_seconds
        report.seconds["decode"] += batch.decode_seconds
        report.unused_captions += batch.unused_captions
        rows = len(batch.numbers) + len(batch.bad)
        report.rows_done += rows
        return rows

    def _finish(self, writer: ShardWriter) -> None:
        """Finish a shard; the writer thread calls this."""
        writer.finish()
        self._open_writers.discard(writer)

    def close(self) -> None:
        """Release the shards that are not finished."""
        for writer in self._open_writers:
            writer.close()
        self._open_writers.clear()


def run(jobs: Sequence[CacheJob], shards: Sequence[Shard], bar: Progress) -> None:
    """Encode and write the shards that a cache lacks and no other process has claimed, in one pass.

    The jobs have the same sources and settings, and their encoders are on one device.
    """
    started = time.perf_counter()
    stage = jobs[0].stage
    stream = encoded(
        _claimed_groups(jobs, shards),
        stage.encoder.device,
        stage.settings.workers,
        stage.split_batch_across_threads,
    )
    try:
        with BackgroundWriter() as background, contextlib.closing(stream):
            for claimed, batch in stream:
                rows = claimed.job.pass_on(batch, claimed.writer, background)
                bar.update(rows)
            for job in jobs:
                job.report.streamed += time.perf_counter() - started
    finally:
        for job in jobs:
            job.close()


def _claimed_groups(
    jobs: Sequence[CacheJob], shards: Sequence[Shard]
) -> Iterator[list[ClaimedShard]]:
    """Claim each shard for every cache that lacks it, when its turn comes.

    Claims of one shard that need the same rows are one group.
    """
    for shard in shards:
        groups: dict[Sequence[int], list[ClaimedShard]] = {}
        for job in jobs:
            claimed = job.claim(shard)
            if claimed is not None:
                groups.setdefault(claimed.numbers, []).append(claimed)
        yield from groups.values()
