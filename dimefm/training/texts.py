"""Batches of sentences, for a text tower; like all batches, pure functions of (seed, number)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dimefm.data.order import rows_of_step, seed_of
from dimefm.errors import BadRow, DataError
from dimefm.recipe import Recipe
from dimefm.training.batches import Batch, complaint, drawn, features_of
from dimefm.training.sources import TextSources


class TextBatches:
    """Loads micro-batch ``number`` of sentences with cached features.

    With text caches the ``own`` rows of a batch are those of its sentences, and images are drawn by themselves. Without, a
    batch is of ``batch_size`` images, each with one of its sentences, and both sides of the batch are the images' rows.
    """

    def __init__(self, sources: TextSources, recipe: Recipe, tokenize: Callable[[list[str]], Tensor]):
        self.sources, self.recipe, self.tokenize = sources, recipe, tokenize

    def __call__(self, number: int) -> Batch:
        """Return the batch; rows without a sentence are left out and listed. Raises DataError when no row has one.

        Sentences of more tokens than the tower reads are cut.
        """
        raw, caches, cached = self._rows(number)
        sentences, kept, bad = [], [], []
        for place, row in enumerate(raw.tolist()):
            seed = seed_of(self.recipe.seed, "caption", number, place)
            try:
                sentences.append(thinned(self._sentence(row, seed), self.recipe.word_dropout, seed))
            except BadRow as error:
                bad.append(complaint(self.sources.raw, row, error))
                continue
            kept.append(place)
        if not kept:
            raise DataError(f"batch {number}: none of its {len(raw)} sentences can be read; the first: {bad[0]}")
        own = features_of(caches, [rows[kept] for rows in cached])
        return Batch(None, self.tokenize(sentences), own, self._images(number) if self.sources.pairs is None else own, bad)

    def _rows(self, number: int) -> tuple[np.ndarray, tuple, list[np.ndarray]]:
        """Return (raw rows of sentences, caches, the rows there that the sentences shall be like)."""
        sources, recipe = self.sources, self.recipe
        if sources.pairs is None:
            usable = rows_of_step(number, recipe.batch_size, len(sources), recipe.seed, "texts")
            raw, cached = sources.text_rows.locate(usable)
            return raw, sources.text_caches, cached
        chosen = rows_of_step(number, recipe.batch_size, len(sources), recipe.seed, "images")
        seeds = [seed_of(recipe.seed, "sentence", number, place) for place in range(len(chosen))]
        return sources.pairs.draw(chosen, seeds), sources.image_caches, [sources.pairs.images[chosen]]

    def _images(self, number: int) -> tuple[Tensor, ...]:
        return drawn(self.sources.image_caches, self.sources.image_rows, number, self.recipe, "images")

    def _sentence(self, number: int, seed: int) -> str:
        """Return the sentence of a raw row: the first, whose features a text cache holds, or of a pair any of them."""
        texts = self.sources.raw[number].texts
        text = texts[0 if self.sources.pairs is None else seed % len(texts)] if texts else ""
        if not text.strip():
            raise BadRow("sentence is empty")
        return text


def thinned(sentence: str, share: float, seed: int) -> str:
    """Return a sentence without each of its words with probability ``share``; one word at least stays.

    Source: random deletion, one of the four operations of EDA (Wei and Zou, 2019).
    """
    if not share:
        return sentence
    words = sentence.split()
    draws = np.random.default_rng(seed).random(len(words))
    return " ".join(word for word, draw in zip(words, draws, strict=True) if draw >= share or draw == draws.max())
