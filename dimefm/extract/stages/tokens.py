"""The token stage of extraction: several rows for each image or text, one per token."""

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
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.extract.stages.texts import Texts
from dimefm.models import patch_tokens
from dimefm.models.inference.text_batches import encode_sentences


class PatchTokenStage(Stage):
    """Encodes the tokens of the images or texts that another stage, ``inner``, prepares.

    Token t of sample i of a shard is row i * count + t. A sample is encoded whole: a batch has all
    tokens of a sample, even when only one row of the sample was asked for.
    """

    def __init__(self, inner: Images | Texts, policy: TokenPolicy):
        """Raises RecipeError for settings that exclude tokens, ModelError for an encoder without
        tokens.
        """
        super().__init__(inner.encoder, inner.settings)
        self.inner = inner
        self.policy = policy
        self.rows_per_item = policy.count
        self.how = {**inner.how, "tokens": policy.how()}
        check_settings(inner.settings.views, inner.settings.text_views, inner.settings.compile)
        patch_tokens.check(inner.encoder, "image" if isinstance(inner, Images) else "text")

    def resolve_precision(self, out: str | Path, before: Manifest | None) -> None:
        self.inner.resolve_precision(out, before)
        self.encoder = self.inner.encoder

    def index(self, shard: Shard) -> SampleIndex:
        return self.inner.index(shard)

    def chunk_size(self) -> int:
        if isinstance(self.inner, Images):
            samples = self.inner.chunk_size()
        else:
            samples = self.settings.batch_size
        return samples * self.policy.count

    def prepare(self, index: SampleIndex, numbers: Sequence[int]) -> Batch:
        (batch,) = self.prepare_shared((), index, numbers)
        return batch

    def prepare_shared(
        self, others: Sequence[Stage], index: SampleIndex, numbers: Sequence[int]
    ) -> list[Batch]:
        samples = list(dict.fromkeys(number // self.policy.count for number in numbers))
        inner_others = [stage.inner for stage in cast("Sequence[PatchTokenStage]", others)]
        batches = self.inner.prepare_shared(inner_others, index, samples)
        for batch in batches:
            self._expand(batch)
        return batches

    def _expand(self, batch: Batch) -> None:
        """Replace each sample of a batch by the rows of its tokens."""
        numbers = []
        keys = []
        for sample, key in zip(batch.numbers, batch.keys, strict=True):
            first_row = sample * self.policy.count
            for token in range(self.policy.count):
                numbers.append(first_row + token)
                keys.append(f"{key}#{token}")
        bad_rows = []
        for bad in batch.bad:
            first_row = bad.row * self.policy.count
            for token in range(self.policy.count):
                bad_rows.append(Bad(first_row + token, f"{bad.key}#{token}", bad.reason))
        batch.numbers = numbers
        batch.keys = keys
        batch.bad = bad_rows
        batch.input_digests = []  # they find repeated rows, and these are of samples

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the unit vectors [n * count, dim] of the tokens of n samples, in order."""
        if isinstance(self.inner, Images):
            tokens = self._encode_images(self.inner, inputs)
        else:
            tokens = self._encode_texts(inputs)
        return tokens.flatten(0, 1)

    def _encode_images(self, stage: Images, inputs: torch.Tensor) -> torch.Tensor:
        pixels = stage.decoder.finish(inputs, self.encoder.device)
        return patch_tokens.image_tokens(self.encoder, pixels, self.policy.count)

    def _encode_texts(self, inputs: torch.Tensor) -> torch.Tensor:
        def encode(part: torch.Tensor) -> torch.Tensor:
            return patch_tokens.text_tokens(self.encoder, part, self.policy.count)

        return encode_sentences(self.encoder, inputs, self.settings.batch_size, encode)


def check_settings(views: object, text_views: object, compiled: bool) -> None:
    """Raise RecipeError for settings that exclude tokens; pass a falsy value where one is unset."""
    exclusive = {"--views": views, "--text-views": text_views, "--compile": compiled}
    for name, value in exclusive.items():
        if value:
            raise RecipeError(f"--tokens and {name} exclude each other. Fix: leave one of them out")
