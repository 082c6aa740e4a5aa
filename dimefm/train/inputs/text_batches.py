"""Batches of sentences, for a text tower; like all batches, pure functions of (seed, number)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from dimefm.errors import BadRow
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.image_batches import Batch, complaint, drawn, features_of, tokens_of
from dimefm.train.inputs.sampling import other_order, own_order
from dimefm.train.inputs.sources import TextSources


class TextBatches:
    """Loads micro-batch ``number`` of sentences with cached features.

    With text caches the ``own`` rows of a batch are those of its sentences, of several views of
    each the next each epoch, and images are drawn by themselves. Without, a batch is of
    ``batch_size`` images, each with one of its sentences, and both sides of the batch are the
    images' rows. Sentences are those of ``places`` (None: all).
    """

    def __init__(
        self,
        sources: TextSources,
        recipe: Recipe,
        tokenize: Callable[[list[str]], Tensor],
        places: Sequence[int] | None = None,
    ):
        self.sources, self.recipe, self.tokenize = sources, recipe, tokenize
        self.own, self.other = own_order(sources, recipe), other_order(sources, recipe)
        self.places = range(recipe.batch_size) if places is None else places

    def __call__(self, number: int) -> Batch:
        """Return the batch; rows without a sentence are left out and listed. Sentences of more
        tokens than the tower reads are cut."""
        raw, views, caches, cached = self._rows(number)
        sentences, kept, bad = [], [], []
        for place in self.places:
            row, seed = (
                int(raw[place]),
                seed_of(self.recipe.seed, "caption", number * self.recipe.batch_size + place),
            )
            try:
                sentences.append(
                    thinned(
                        self._sentence(row, int(views[place]), seed), self.recipe.word_dropout, seed
                    )
                )
            except BadRow as error:
                bad.append(complaint(self.sources.raw, row, error))
                continue
            kept.append(place)
        tokens, places = tokens_of(sentences, self.tokenize), np.array(kept, dtype=np.int64)
        other = self._images(number) if self.sources.pairs is None else None
        return Batch(None, tokens, places, features_of(caches, cached), other, bad)

    def _rows(self, number: int) -> tuple[np.ndarray, np.ndarray, tuple, list[np.ndarray]]:
        """Return (raw rows of sentences, their views, caches, the rows there that the sentences
        shall be like).
        """
        sources, first = self.sources, number * self.recipe.batch_size
        dealt, epochs = self.own.take(first, self.recipe.batch_size)
        policy = sources.text_policy
        views = epochs % (1 if policy is None else policy.count)
        if sources.pairs is None:
            raw, cached = sources.text_rows.locate(dealt, views)
            return raw, views, sources.text_caches, cached
        seeds = [
            seed_of(self.recipe.seed, "sentence", first + place) for place in range(len(dealt))
        ]
        return (
            sources.pairs.draw(dealt, seeds),
            views,
            sources.image_caches,
            [sources.pairs.images[dealt]],
        )

    def _images(self, number: int) -> tuple[Tensor, ...]:
        return drawn(
            self.sources.image_caches, self.sources.image_rows, self.other, number, self.recipe
        )

    def _sentence(self, number: int, view: int, seed: int) -> str:
        """Return the sentence of a raw row: the one whose features a text cache holds, its first or
        of several views this one; or of a pair any of them."""
        row, policy = self.sources.raw[number], self.sources.text_policy
        if policy is not None:
            return policy.draw(row.key, view, row.texts)
        texts = row.texts
        text = texts[0 if self.sources.pairs is None else seed % len(texts)] if texts else ""
        if not text.strip():
            raise BadRow("sentence is empty")
        return text


def thinned(sentence: str, share: float, seed: int) -> str:
    """Return a sentence without each of its words with probability ``share``; one word at least
    stays.

    Source: random deletion, one of the four operations of EDA (Wei and Zou, 2019).
    """
    if not share:
        return sentence
    words = sentence.split()
    draws = np.random.default_rng(seed).random(len(words))
    return " ".join(
        word
        for word, draw in zip(words, draws, strict=True)
        if draw >= share or draw == draws.max()
    )
