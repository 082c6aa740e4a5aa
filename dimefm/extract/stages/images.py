"""The image stage of extraction: image files to pixels to rows."""

from __future__ import annotations

import itertools
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
from dimefm.models.encoder import Encoder
from dimefm.models.inference import compiled
from dimefm.models.inference.precision import check_compiled
from dimefm.models.preprocess import decoder


class Images(Stage):
    """Image files to pixels to rows; with a view policy of K views, view v of image i of a shard is
    row i * K + v.
    """

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        self.views, self.decoder = (
            settings.views,
            decoder(settings.decoder, encoder.image_preprocess),
        )
        self.how = {
            "decoder": self.decoder.name,
            "views": None if self.views is None else self.views.how(),
        }
        self._compiled, self._one_at_a_time = cast("Encoder | None", None), threading.Lock()
        if settings.compile:
            compiled.check(encoder.device)
            check_compiled(encoder.precision, encoder.device)
            self.how["compiled"] = True
        self.per_image = 1 if self.views is None else self.views.count

    def chunk_size(self) -> int:
        return (
            self.encoder.fitting_batch_size
            if self.settings.auto_batch
            else self.settings.batch_size
        )

    def count(self, shard: Shard) -> int:
        return len(shard) * self.per_image

    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        return self.prepare_shared((), shard, numbers)[0]

    def prepare_shared(
        self, others: Sequence[Stage], shard: Shard, numbers: Sequence[int]
    ) -> list[Batch]:
        """As every stage's, but each image is read and decoded once; the first batch has the
        seconds of that.
        """
        stages = [self, *cast("Sequence[Images]", others)]
        batches = [Batch() for _ in stages]
        for image, of_image in itertools.groupby(numbers, lambda number: number // self.per_image):
            views = [number % self.per_image for number in of_image]
            started = time.perf_counter()
            try:
                row = shard[image]
                read = time.perf_counter()
                opened = self.decoder.open(row.image)
            except BadRow as error:
                key = self.key(shard, image)
                for batch in batches:
                    batch.bad += self._bad(image, key, views, error)
                continue
            batches[0].read += read - started
            batches[0].decode += time.perf_counter() - read
            for stage, batch in zip(stages, batches, strict=True):
                stage._add(batch, image, row.key, opened, views)
        for batch in batches:
            batch.stack()
        return batches

    def _add(self, batch: Batch, image: int, key: str, opened: Any, views: list[int]) -> None:
        """Put these views of an opened image into ``batch``, as this encoder takes them."""
        started = time.perf_counter()
        try:
            batch.parts += self._pixels(key, opened, views)
        except BadRow as error:
            batch.bad += self._bad(image, key, views, error)
            return
        batch.decode += time.perf_counter() - started
        batch.numbers += [image * self.per_image + view for view in views]
        batch.keys += [self._row_key(key, view) for view in views]

    def _pixels(self, key: str, opened: Any, views: list[int]) -> list[torch.Tensor]:
        """Return the encoder's input of each of these views of an opened image."""
        policy = self.views
        if policy is None:
            return [self.decoder.whole(opened)]
        return self.decoder.views(
            opened, lambda w, h: [policy.draw(key, view, w, h) for view in views]
        )

    def _bad(self, image: int, key: str, views: list[int], error: BadRow) -> list[Bad]:
        return [
            Bad(image * self.per_image + view, self._row_key(key, view), str(error))
            for view in views
        ]

    def _row_key(self, key: str, view: int) -> str:
        return row_keys([key], self.views)[view]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._encoder.encode_image(self.decoder.finish(inputs, self.encoder.device))

    @property
    def _encoder(self) -> Encoder:
        with self._one_at_a_time:
            if self.settings.compile and self._compiled is None:
                self._compiled = self.encoder.compiled(self.chunk_size())
            return self._compiled or self.encoder
