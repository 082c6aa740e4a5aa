"""The image stage of extraction: image files to pixels to embeddings."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import torch

from dimefm.cache.writer import Bad
from dimefm.data import Shard
from dimefm.data.views.image_views import row_keys
from dimefm.errors import BadRow
from dimefm.extract.stages.base import Batch, Settings, Stage
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.models.encoder import Encoder
from dimefm.models.inference import compiled
from dimefm.models.inference.precision import check_compiled
from dimefm.models.preprocess import decoder


class Images(Stage):
    """Encodes images, or with a view policy of K views, K crops of each image.

    View v of image i of a shard is row i * K + v.
    """

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        self.views = settings.views
        self.views_per_image = 1 if self.views is None else self.views.count
        self.decoder = decoder(settings.decoder, encoder.image_preprocess)
        self.how = {
            "decoder": self.decoder.name,
            "views": None if self.views is None else self.views.how(),
        }
        self._compiled: Encoder | None = None
        self._compiling = threading.Lock()
        if settings.compile:
            compiled.check(encoder.device)
            check_compiled(encoder.precision, encoder.device)
            self.how["compiled"] = True

    def chunk_size(self) -> int:
        if self.settings.auto_batch:
            return self.encoder.fitting_batch_size
        return self.settings.batch_size

    def index(self, shard: Shard) -> SampleIndex:
        return SampleIndex.from_equal_rows(shard, self.views_per_image)

    def prepare(self, index: SampleIndex, numbers: Sequence[int]) -> Batch:
        (batch,) = self.prepare_shared((), index, numbers)
        return batch

    def prepare_shared(
        self, others: Sequence[Stage], index: SampleIndex, numbers: Sequence[int]
    ) -> list[Batch]:
        """Return the batch of each stage; each image is read and decoded once for all.

        The seconds of reading and decoding are in the first batch.
        """
        stages = [self, *cast("Sequence[Images]", others)]
        batches = [Batch() for _ in stages]
        inputs: list[list[torch.Tensor]] = [[] for _ in stages]
        for row, views in index.by_row(numbers):
            started = time.perf_counter()
            try:
                image = index.read(row)
                read = time.perf_counter()
                opened = self.decoder.open(image.image)
            except BadRow as error:
                key = self.key(index.shard, row)
                for batch in batches:
                    batch.bad += self._bad(index, row, key, views, error)
                continue
            batches[0].read_seconds += read - started
            batches[0].decode_seconds += time.perf_counter() - read
            for stage, batch, pixels in zip(stages, batches, inputs, strict=True):
                pixels += stage._add(batch, index, row, image.key, opened, views)
        for batch, pixels in zip(batches, inputs, strict=True):
            if pixels:
                batch.inputs = torch.stack(pixels)
                pixels.clear()  # before the next stage's are stacked
        return batches

    def _add(
        self, batch: Batch, index: SampleIndex, row: int, key: str, opened: Any, views: list[int]
    ) -> list[torch.Tensor]:
        """Add these views of an opened image to ``batch``; return the encoder's input of each."""
        started = time.perf_counter()
        try:
            pixels = self._pixels(key, opened, views)
        except BadRow as error:
            batch.bad += self._bad(index, row, key, views, error)
            return []
        batch.decode_seconds += time.perf_counter() - started
        for view in views:
            batch.numbers.append(index.number(row, view))
            batch.keys.append(self._row_key(key, view))
        return pixels

    def _pixels(self, key: str, opened: Any, views: list[int]) -> list[torch.Tensor]:
        """Return the encoder's input of each of these views of an opened image."""
        policy = self.views
        if policy is None:
            return [self.decoder.whole(opened)]

        def draw(width: int, height: int) -> list:
            return [policy.draw(key, view, width, height) for view in views]

        return self.decoder.views(opened, draw)

    def _bad(
        self, index: SampleIndex, row: int, key: str, views: list[int], error: BadRow
    ) -> list[Bad]:
        """Return the quarantine entries of these views of an image."""
        entries = []
        for view in views:
            number = index.number(row, view)
            entries.append(Bad(number, self._row_key(key, view), str(error)))
        return entries

    def _row_key(self, key: str, view: int) -> str:
        return row_keys([key], self.views)[view]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        pixels = self.decoder.finish(inputs, self.encoder.device)
        return self._encoder.encode_image(pixels)

    @property
    def _encoder(self) -> Encoder:
        """The encoder, compiled when the settings ask for that; encode threads compile it once."""
        with self._compiling:
            if self.settings.compile and self._compiled is None:
                self._compiled = self.encoder.compiled(self.chunk_size())
            return self._compiled or self.encoder
