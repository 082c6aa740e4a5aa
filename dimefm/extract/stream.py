"""Batches of one shard after another through threads and encoders.

Beside a GPU threads read and decode the next batches, of this shard and the next. On a CPU each of
a few threads, the lanes, does the whole of a batch of images; sentences are made ready beside the
lanes, which share the work of a batch. Stages of several encoders may go over the same rows
together.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from dimefm.data import Shard
from dimefm.extract.stages.base import Batch, Stage, chunked
from dimefm.models.inference.text_batches import SeenSentences
from dimefm.runtime.threads import encode_thread_count, encode_threads, prefetch_map


@dataclass(eq=False)
class ShardTask:
    """Rows of one shard, ascending, that a stage is to encode; ``met`` None: also those that were
    encoded before.
    """

    stage: Stage
    shard: Shard
    numbers: Sequence[int]
    met: SeenSentences | None = field(default_factory=SeenSentences)

    def start(self, batch: Batch, encode_threads: ThreadPoolExecutor) -> None:
        """Encode of the next batch what this job has not encoded yet."""
        if self.met is not None and batch.inputs is not None and batch.digests:
            fresh, batch.which = self.met.deduplicate(batch.digests)
            if len(fresh) < len(batch.inputs):
                batch.inputs = batch.inputs[fresh] if fresh else None
        self.stage.start(batch, encode_threads)
        if batch.last:
            self.met = None


J = TypeVar("J", bound=ShardTask)
Group = Sequence[
    J
]  # jobs of one kind and device with the same settings, about the same rows of one shard


def encoded(
    groups: Iterable[Group[J]],
    device: torch.device,
    workers: int,
    split_batch_across_threads: bool = False,
) -> Generator[tuple[J, Batch]]:
    """Yield the batches of one group of jobs after another, in flight through the encoders, each
    job's last one marked.

    The jobs of a group share what ``prepare_shared`` shares. A batch never holds rows of two jobs,
    so what is computed of a shard does not depend on its neighbours. The next group is asked for
    when a thread has nothing else to do. ``split_batch_across_threads`` is that of the stages.
    """
    most = 2 * encode_thread_count(device) if device.type == "cpu" else 1
    with encode_threads(device) as pool:
        if device.type == "cpu" and not split_batch_across_threads:
            yield from _stream(pool, most + 1, groups, whole=True)
            return
        behind: deque[tuple[J, Batch]] = deque()
        with ThreadPoolExecutor(workers, "reader") as readers:
            for job, batch in _stream(readers, workers + 1, groups):
                job.start(batch, pool)
                behind.append((job, batch))
                while _pieces(behind) >= most:  # the encoder has work when this one is fetched
                    yield behind.popleft()
            yield from behind


def _pieces(batches: Iterable[tuple[ShardTask, Batch]]) -> int:
    """Return of how many pieces of work all but the first of ``batches`` consist, one each at
    least.
    """
    pending = (batch.pending for _, batch in itertools.islice(batches, 1, None))
    return sum(1 if found is None else found.pieces for found in pending)


def _stream(
    pool: ThreadPoolExecutor, most: int, groups: Iterable[Group[J]], whole: bool = False
) -> Iterator[tuple[J, Batch]]:
    """Yield the batches of each portion of each group, in order, ready or, with ``whole``, encoded
    in their thread.
    """
    tasks = (
        (group, part)
        for group in groups
        for part in chunked(group[0].numbers, group[0].stage.chunk_size())
    )
    for (group, part), batches in prefetch_map(pool, most, lambda task: _made(*task, whole), tasks):
        for job, batch in zip(group, batches, strict=True):
            batch.last = not len(part) or part[-1] == job.numbers[-1]
            yield job, batch


def _made(group: Group[J], numbers: Sequence[int], whole: bool) -> list[Batch]:
    """Return the batch of each job of a group with the rows of ``numbers``."""
    first, *others = (job.stage for job in group)
    batches = first.prepare_shared(others, group[0].shard, numbers)
    for job, batch in zip(group, batches, strict=True):
        if whole:
            job.stage.start(batch)
        elif batch.inputs is not None and job.stage.encoder.device.type == "cuda":
            batch.inputs = batch.inputs.pin_memory()
    return batches
