"""The two stages of extraction, images and sentences: how a shard is counted, made ready in
batches, and encoded.

How batches follow each other through threads stands in ``stream.py``. The threads write to nothing
that they share: a batch carries its own seconds and counts, and whoever consumes it adds them up.
"""

from __future__ import annotations

import dataclasses
import sys
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
from dimefm.models.encoder import Encoder
from dimefm.models.inference.in_flight import Pending
from dimefm.models.inference.precision import PRECISIONS, chosen
from dimefm.models.inference.text_batches import PooledEncode
from dimefm.runtime.threads import prefetch_map


@dataclass(frozen=True)
class Settings:
    """How to extract.

    ``dtype`` None is the format's own. Images: ``decoder`` is one of data/decoders.py; ``views``
    None encodes them through the encoder's own preprocessing, else each gives that many rows, one
    for each view; ``auto_batch`` measures how many to encode at once, in place of ``batch_size``;
    ``compile`` runs their tower compiled. Sentences: ``captions`` "first" keeps one a source row,
    "all" makes a row of each; with ``text_views`` a source row gives that many, one for each view;
    ``long_texts`` says what happens to those past the encoder's context. ``auto_precision`` takes
    the precision of the cache that is there, else one for this machine, in place of the encoder's.
    With ``tokens`` each image and sentence gives that many, one a row, and no row of its own.
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
    """Rows ready to encode: their numbers and keys, the stacked inputs, and the rows that could not
    be made ready.

    ``parts`` are inputs that are not stacked yet; ``read`` and ``decode`` are the seconds that this
    took; ``unused`` counts captions that were left aside; ``last`` marks the end of a job. Rows
    with equal ``digests`` have equal inputs; once repeats are left out of these, ``which`` says
    which of all inputs of the job so far each row has.
    """

    numbers: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    parts: list[torch.Tensor] = field(default_factory=list)
    inputs: torch.Tensor | None = None
    bad: list[Bad] = field(default_factory=list)
    read: float = 0.0
    decode: float = 0.0
    unused: int = 0
    last: bool = False
    digests: list[bytes] = field(default_factory=list)
    which: np.ndarray | None = None
    pending: Pending | PooledEncode | None = None

    def stack(self) -> None:
        """Make ``inputs`` of the parts, if there are any."""
        if self.parts:
            self.inputs, self.parts = torch.stack(self.parts), []


class Stage(ABC):
    """What differs between images and sentences: how many rows a shard has, and how a batch is made
    and encoded.

    ``split_batch_across_threads``: the lanes of a CPU share a batch, which was made ready
    elsewhere; else each does the whole of one. ``rows_per_item`` rows come of one input and are
    asked for together.
    """

    how: dict
    split_batch_across_threads = False
    rows_per_item = 1

    def __init__(self, encoder: Encoder, settings: Settings):
        self.encoder, self.settings = encoder, settings
        self._keys: tuple[str, list[str]] | None = None

    def resolve_precision(self, out: str | Path, before: Manifest | None) -> None:
        """With ``auto_precision`` encode as the cache ``before`` at ``out`` says, else as is quick
        here, and say so.
        """
        if not self.settings.auto_precision:
            return
        found = None if before is None else before.how.get("precision")
        if found in PRECISIONS:
            precision, why = found, "as the cache there says"
        else:
            precision, why = chosen(self.encoder.device, self.settings.compile)
        self.encoder = dataclasses.replace(self.encoder, precision=precision)
        if self.settings.progress:
            print(
                f"note: {out}: --precision auto is {precision}, {why}", file=sys.stderr, flush=True
            )

    def count(self, shard: Shard) -> int:
        """Return how many rows the shard gives."""
        return len(shard)

    def key(self, shard: Shard, number: int) -> str:
        """Return the key of a row that cannot be read; the keys of the present shard stay in
        memory.
        """
        kept = self._keys
        if kept is None or kept[0] != shard.name:
            kept = self._keys = (shard.name, shard.keys())
        return kept[1][number]

    def chunk_size(self) -> int:
        """Return how many rows are made ready together.

        The same for all processes of one extraction, as the last bits of a feature may depend on
        what it is encoded with.
        """
        return self.settings.batch_size

    @abstractmethod
    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        """Read and decode the rows of ``numbers``, ascending; those that cannot be are in
        ``bad``.
        """

    def prepare_shared(
        self, others: Sequence[Stage], shard: Shard, numbers: Sequence[int]
    ) -> list[Batch]:
        """Return what ``prepare`` gives for this stage and each of ``others``, which have its
        settings and its kind.
        """
        return [stage.prepare(shard, numbers) for stage in (self, *others)]

    @abstractmethod
    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return unit rows of the inputs of a batch."""

    def start(self, batch: Batch, encode_threads: Executor | None = None) -> None:
        """Send the inputs of a batch, if there are any, through the encoder; ``pending`` has them
        from now on.
        """
        if batch.inputs is not None:
            batch.pending, batch.inputs = (
                Pending(self.encode, batch.inputs, self.encoder.device),
                None,
            )

    def batches(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield the rows of ``numbers``, ascending, in batches that threads prepare ahead;
        ``count`` the shard first.
        """
        workers = self.settings.workers
        with ThreadPoolExecutor(workers, "reader") as pool:
            parts = chunked(numbers, self.chunk_size())
            yield from (
                batch
                for _, batch in prefetch_map(
                    pool, workers + 1, lambda part: self.prepare(shard, part), parts
                )
            )


def chunked(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield ``numbers`` in portions of ``size``; no numbers make one portion, empty."""
    for start in range(0, max(len(numbers), 1), size):
        yield numbers[start : start + size]
