"""The stage that caches tokens: what the stage of images or sentences makes ready, with several
rows for each item.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from dimefm.cache import Manifest
from dimefm.cache.writer import Bad
from dimefm.data import Shard
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.errors import RecipeError
from dimefm.extract.stages.base import Batch, Stage
from dimefm.extract.stages.images import Images
from dimefm.extract.stages.texts import Texts
from dimefm.models import patch_tokens
from dimefm.models.inference.text_batches import encode_sentences


class PatchTokenStage(Stage):
    """Items to tokens: token t of item i of a shard is row i * count + t. Items are encoded whole:
    a batch has all tokens of each of its items, also of one of which a single row was asked for."""

    def __init__(self, inner: Images | Texts, policy: TokenPolicy):
        """Raises RecipeError for settings that do not go with tokens, ModelError when the encoder
        gives none.
        """
        super().__init__(inner.encoder, inner.settings)
        self.inner, self.policy, self.rows_per_item = inner, policy, policy.count
        self.how = {**inner.how, "tokens": policy.how()}
        check_settings(inner.settings.views, inner.settings.text_views, inner.settings.compile)
        patch_tokens.check(inner.encoder, "image" if isinstance(inner, Images) else "text")

    def resolve_precision(self, out: str | Path, before: Manifest | None) -> None:
        self.inner.resolve_precision(out, before)
        self.encoder = self.inner.encoder

    def count(self, shard: Shard) -> int:
        return self.inner.count(shard) * self.policy.count

    def chunk_size(self) -> int:
        items = (
            self.inner.chunk_size() if isinstance(self.inner, Images) else self.settings.batch_size
        )
        return items * self.policy.count

    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        return self.prepare_shared((), shard, numbers)[0]

    def prepare_shared(
        self, others: Sequence[Stage], shard: Shard, numbers: Sequence[int]
    ) -> list[Batch]:
        items = list(dict.fromkeys(number // self.policy.count for number in numbers))
        inner = [stage.inner for stage in cast("Sequence[PatchTokenStage]", others)]
        return [self._spread(batch) for batch in self.inner.prepare_shared(inner, shard, items)]

    def _spread(self, batch: Batch) -> Batch:
        """Give each item of a batch as many rows as it has tokens."""
        count = self.policy.count
        batch.keys = [f"{key}#{token}" for key in batch.keys for token in range(count)]
        batch.numbers = [item * count + token for item in batch.numbers for token in range(count)]
        batch.bad = [
            Bad(bad.row * count + token, f"{bad.key}#{token}", bad.reason)
            for bad in batch.bad
            for token in range(count)
        ]
        batch.digests = []  # rows that come again are told by item, and have several rows here
        return batch

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return unit rows [n * count, D] of the inputs of n items, item by item."""
        encoder, count = self.encoder, self.policy.count
        if isinstance(self.inner, Images):
            found = patch_tokens.image_tokens(
                encoder, self.inner.decoder.finish(inputs, encoder.device), count
            )
        else:
            found = encode_sentences(
                encoder,
                inputs,
                self.settings.batch_size,
                lambda part: patch_tokens.text_tokens(encoder, part, count),
            )
        return found.flatten(0, 1)


def check_settings(views: object, text_views: object, compiled: bool) -> None:
    """Raise RecipeError for settings of an extraction that do not go with tokens; each is falsy
    where it is not set.
    """
    for name, given in (("--views", views), ("--text-views", text_views), ("--compile", compiled)):
        if given:
            raise RecipeError(f"--tokens and {name} exclude each other; leave one of them out")
