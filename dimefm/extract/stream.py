"""Batches of one shard after another, through the threads and the encoders.

On a GPU, reader threads prepare the next batches, of this shard and the following ones. On a CPU
each of a few encode threads prepares and encodes a whole batch of images. Batches of texts are
prepared by reader threads, and the encode threads share the work of each batch. The stages of
several encoders may process the same rows together.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from dimefm.data import Shard
from dimefm.extract.stages.base import Batch, Stage, chunked
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.models.inference.text_batches import SeenSentences
from dimefm.runtime.threads import encode_thread_count, encode_threads, prefetch_map


@dataclass(eq=False)
class ShardTask:
    """The rows ``numbers`` of one shard, ascending, that a stage encodes.

    Inputs that are already in ``seen`` are not encoded again; with None every input is encoded.
    """

    stage: Stage
    index: SampleIndex
    numbers: Sequence[int]
    seen: SeenSentences | None = field(default_factory=SeenSentences)

    @property
    def shard(self) -> Shard:
        """The shard whose rows are encoded."""
        return self.index.shard

    def start(self, batch: Batch, encode_threads: ThreadPoolExecutor) -> None:
        """Send the next batch through the encoder, without the inputs that were encoded before."""
        if self.seen is not None:
            _remove_repeats(batch, self.seen)
        self.stage.start(batch, encode_threads)
        if batch.last:
            self.seen = None  # its memory is not needed any more


def _remove_repeats(batch: Batch, seen: SeenSentences) -> None:
    """Remove the inputs that ``seen`` has; ``vector_numbers`` then refers to earlier vectors."""
    if batch.inputs is None or not batch.input_digests:
        return
    new, batch.vector_numbers = seen.deduplicate(batch.input_digests)
    if not new:
        batch.inputs = None
    elif len(new) < len(batch.inputs):
        batch.inputs = batch.inputs[new]


Task = TypeVar("Task", bound=ShardTask)
Group = Sequence[Task]
"""Tasks of one kind and device, with the same settings and the same rows of one shard."""

Chunk = tuple[Group[Task], Sequence[int]]
"""A group, and the numbers of those of its rows that are prepared together."""


def encoded(
    groups: Iterable[Group[Task]],
    device: torch.device,
    workers: int,
    split_batch_across_threads: bool = False,
) -> Generator[tuple[Task, Batch]]:
    """Yield the batches of the tasks, one group after another, each on its way through the encoder.

    The tasks of a group share what ``prepare_shared`` shares. A batch never holds rows of two
    tasks, so the result for a shard does not depend on its neighbors. The last batch of each task
    is marked. The next group is drawn when a thread is free for it. ``split_batch_across_threads``
    is that of the stages.
    """
    with encode_threads(device) as encoders:
        if device.type == "cpu" and not split_batch_across_threads:
            stream = _encoded_by_thread(groups, device, encoders)
        else:
            stream = _encoded_in_turn(groups, device, encoders, workers)
        yield from stream


def _encoded_by_thread(
    groups: Iterable[Group[Task]], device: torch.device, encoders: ThreadPoolExecutor
) -> Generator[tuple[Task, Batch]]:
    """Let each encode thread prepare and encode a whole batch."""

    def prepare_and_encode(chunk: Chunk[Task]) -> list[Batch]:
        group, numbers = chunk
        batches = _prepare(group, numbers)
        for task, batch in zip(group, batches, strict=True):
            task.stage.start(batch)
        return batches

    limit = 2 * encode_thread_count(device) + 1
    chunks = prefetch_map(encoders, limit, prepare_and_encode, _chunks(groups))
    with contextlib.closing(chunks):
        for chunk, batches in chunks:
            yield from _marked(chunk, batches)


def _encoded_in_turn(
    groups: Iterable[Group[Task]],
    device: torch.device,
    encoders: ThreadPoolExecutor,
    workers: int,
) -> Generator[tuple[Task, Batch]]:
    """Let reader threads prepare batches, and start one after the other in this thread.

    A batch is yielded when the batches behind it are enough to keep the encoder busy meanwhile.
    """
    enough_pieces = 2 * encode_thread_count(device) if device.type == "cpu" else 1
    in_flight: deque[tuple[Task, Batch]] = deque()

    def prepare(chunk: Chunk[Task]) -> list[Batch]:
        group, numbers = chunk
        batches = _prepare(group, numbers)
        for task, batch in zip(group, batches, strict=True):
            if batch.inputs is not None and task.stage.encoder.device.type == "cuda":
                batch.inputs = batch.inputs.pin_memory()
        return batches

    with ThreadPoolExecutor(workers, "reader") as readers:
        chunks = prefetch_map(readers, workers + 1, prepare, _chunks(groups))
        with contextlib.closing(chunks):
            for chunk, batches in chunks:
                for task, batch in _marked(chunk, batches):
                    task.start(batch, encoders)
                    in_flight.append((task, batch))
                    while _pieces_behind_first(in_flight) >= enough_pieces:
                        yield in_flight.popleft()
        yield from in_flight


def _pieces_behind_first(batches: Iterable[tuple[ShardTask, Batch]]) -> int:
    """Return how many pieces of work the batches behind the first one have, at least one each."""
    pieces = 0
    for _, batch in itertools.islice(batches, 1, None):
        pieces += 1 if batch.pending is None else batch.pending.pieces
    return pieces


def _chunks(groups: Iterable[Group[Task]]) -> Iterator[Chunk[Task]]:
    """Yield the chunks of one group after another."""
    for group in groups:
        first = group[0]
        for numbers in chunked(first.numbers, first.stage.chunk_size()):
            yield group, numbers


def _prepare(group: Group[Task], numbers: Sequence[int]) -> list[Batch]:
    """Return the prepared batch of each task of a group."""
    first = group[0]
    others = [task.stage for task in group[1:]]
    return first.stage.prepare_shared(others, first.index, numbers)


def _marked(chunk: Chunk[Task], batches: Sequence[Batch]) -> Iterator[tuple[Task, Batch]]:
    """Yield (task, batch) of a chunk; the last batch of a task is marked."""
    group, numbers = chunk
    for task, batch in zip(group, batches, strict=True):
        batch.last = not len(numbers) or numbers[-1] == task.numbers[-1]
        yield task, batch
