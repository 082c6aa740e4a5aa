"""What the stages of extraction share: settings, batches, and the interface of a stage.

A stage knows how many samples a shard gives, prepares them in batches, and encodes them.
``stream.py`` moves the batches through threads. Threads share no counters: a batch carries its own
seconds and counts, and whoever consumes the batch adds them up.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dimefm.cache import Manifest
from dimefm.cache.writer import Bad
from dimefm.data import Shard
from dimefm.data.views.image_views import ViewPolicy
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.models.encoder import Encoder
from dimefm.models.inference.in_flight import Pending
from dimefm.models.inference.precision import PRECISIONS, chosen
from dimefm.models.inference.text_batches import PooledEncode
from dimefm.runtime import console
from dimefm.runtime.threads import prefetch_map

LONGEST_NAMED = 4096  # characters of the key of a bad row


@dataclass(frozen=True)
class Settings:
    """How to extract.

    Output: ``format`` of the shards, and ``dtype`` of the numbers; None is the format's default.

    Images: ``decoder`` is a decoder of ``models/preprocess.py``. ``views`` encodes that many crops
    of each image, one row per view; without it an image is preprocessed as the encoder says.
    ``auto_batch`` measures the batch size in place of ``batch_size``; ``compile`` compiles the
    image tower.

    Texts: ``captions`` "first" encodes the first caption of a source row, "all" encodes every
    caption, one row each. ``text_views`` encodes that many texts of each source row, one row per
    view. ``long_texts`` is "quarantine" or "truncate", for texts longer than the context.

    Both: ``tokens`` stores that many tokens of each image or text, one row per token, in place of
    its embedding. ``auto_precision`` takes the precision of an existing cache, or else the fastest
    one on this machine, in place of the encoder's. ``workers`` threads read and decode.
    """

    format: str = "hdf5"
    dtype: str | None = None
    batch_size: int = 256
    workers: int = 2
    decoder: str = "turbo"
    captions: str = "first"
    long_texts: str = "quarantine"
    progress: bool = True
    views: ViewPolicy | None = None
    text_views: TextPolicy | None = None
    tokens: TokenPolicy | None = None
    auto_batch: bool = False
    auto_precision: bool = False
    compile: bool = False


@dataclass
class Batch:
    """The rows of one batch, from preparation to encoding.

    ``numbers`` are the rows of the cache shard that could be prepared, and ``keys`` their keys.
    ``bad`` are the rows that could not. ``inputs`` is the encoder's input of the prepared rows,
    and ``pending`` its output, from the moment when it is sent through the encoder.

    Rows with equal ``input_digests`` have equal inputs. When repeats are removed from ``inputs``,
    ``vector_numbers`` says which vector each row has: the vectors of one task are numbered from 0
    in the order of encoding.
    """

    numbers: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    inputs: torch.Tensor | None = None
    input_digests: list[bytes] = field(default_factory=list)
    vector_numbers: np.ndarray | None = None
    pending: Pending | PooledEncode | None = None
    last: bool = False  # whether it ends its task
    unused_captions: int = 0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


class Stage(ABC):
    """What differs between images, texts and tokens: how samples are counted, prepared and encoded.

    ``how`` is the stage's part of the manifest. Each sample gives ``rows_per_item`` rows of the
    cache, which are asked for together. On a CPU, with ``split_batch_across_threads``, reader
    threads prepare a batch and the encode threads share it; without, one encode thread prepares
    and encodes a whole batch.
    """

    how: dict
    split_batch_across_threads = False
    rows_per_item = 1

    def __init__(self, encoder: Encoder, settings: Settings):
        self.encoder = encoder
        self.settings = settings
        self._keys_of_shard: tuple[str, list[str]] | None = None

    def resolve_precision(self, out: str | Path, before: Manifest | None) -> None:
        """With ``auto_precision``, choose the encoder's precision, and print the choice.

        It is the precision of ``before``, the manifest or plan of the cache at ``out``; without one
        it is the fastest on this machine.
        """
        if not self.settings.auto_precision:
            return
        cached = None if before is None else before.how.get("precision")
        if cached in PRECISIONS:
            precision = cached
            reason = "as the cache there says"
        else:
            precision, reason = chosen(self.encoder.device, self.settings.compile)
        self.encoder = dataclasses.replace(self.encoder, precision=precision)
        if self.settings.progress:
            console.note(f"note: {out}: --precision auto is {precision}, {reason}")

    @abstractmethod
    def index(self, shard: Shard) -> SampleIndex:
        """Return the samples of a shard; it may read every row, so keep the result."""

    def row_count(self, index: SampleIndex) -> int:
        """Return how many rows of the cache the samples of a shard give."""
        return len(index) * self.rows_per_item

    def key(self, shard: Shard, row: int) -> str:
        """Return the key of a source row that cannot be read, at most its first characters.

        The keys of the last shard that was asked for stay in memory.
        """
        kept = self._keys_of_shard
        if kept is None or kept[0] != shard.name:
            kept = (shard.name, shard.keys())
            self._keys_of_shard = kept
        return kept[1][row][:LONGEST_NAMED]

    def chunk_size(self) -> int:
        """Return how many rows are prepared together.

        All processes of one extraction must have the same number, because the last bits of an
        embedding may depend on the rows that are encoded with it.
        """
        return self.settings.batch_size

    @abstractmethod
    def prepare(self, index: SampleIndex, numbers: Sequence[int]) -> Batch:
        """Read and decode the rows ``numbers`` of a shard, ascending.

        Rows that cannot be read or decoded are in the ``bad`` of the batch.
        """

    def prepare_shared(
        self, others: Sequence[Stage], index: SampleIndex, numbers: Sequence[int]
    ) -> list[Batch]:
        """Return the batch of this stage, then that of each of ``others``, as ``prepare`` does.

        The stages are of one kind and have the same settings.
        """
        return [stage.prepare(index, numbers) for stage in (self, *others)]

    @abstractmethod
    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the unit vectors [n, dim] of the inputs of a batch."""

    def start(self, batch: Batch, encode_threads: Executor | None = None) -> None:
        """Send the inputs of a batch, if there are any, through the encoder.

        From then on the batch has no ``inputs``, but ``pending``.
        """
        if batch.inputs is not None:
            batch.pending = Pending(self.encode, batch.inputs, self.encoder.device)
            batch.inputs = None

    def batches(self, index: SampleIndex, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield the rows ``numbers``, ascending, in batches that threads prepare ahead."""

        def prepare(chunk: Sequence[int]) -> Batch:
            return self.prepare(index, chunk)

        workers = self.settings.workers
        chunks = chunked(numbers, self.chunk_size())
        with ThreadPoolExecutor(workers, "reader") as pool:
            for _, batch in prefetch_map(pool, workers + 1, prepare, chunks):
                yield batch


def chunked(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield ``numbers`` in chunks of ``size``; no numbers make one chunk, which is empty."""
    for start in range(0, max(len(numbers), 1), size):
        yield numbers[start : start + size]
