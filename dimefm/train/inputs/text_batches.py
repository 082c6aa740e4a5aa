"""Batches of texts, for a text tower; like all batches, pure functions of (seed, number)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dimefm.cache import FeatureCache
from dimefm.errors import BadRow
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.batch import Batch, bad_row
from dimefm.train.inputs.cached_features import features_of, unpaired_features
from dimefm.train.inputs.pair_sentences import Tokenize, tokenize_all
from dimefm.train.inputs.sampling import student_order, unpaired_order
from dimefm.train.inputs.sources import TextSources


@dataclass(frozen=True)
class _TextRows:
    """The texts of a batch, and the cached embeddings that they learn from."""

    raw: np.ndarray  # [B] raw rows
    views: np.ndarray  # [B] which view of the row's texts
    caches: tuple[FeatureCache, ...]
    cache_rows: list[np.ndarray]  # [B] for each cache


class TextBatches:
    """Loads micro-batch ``number`` of texts with cached features.

    With text caches, ``same_modality`` of a batch are the embeddings of its texts, of several views
    of each the next one in each epoch, and images are drawn by themselves. Without, a batch is of
    ``batch_size`` images, each with one of its texts, and both sides of the batch are the images'
    embeddings. Texts are those of ``places`` (None: all).
    """

    def __init__(
        self,
        sources: TextSources,
        recipe: Recipe,
        tokenize: Tokenize,
        places: Sequence[int] | None = None,
    ):
        self.sources = sources
        self.recipe = recipe
        self.tokenize = tokenize
        self.order = student_order(sources, recipe)
        self.unpaired = unpaired_order(sources, recipe)
        self.places = range(recipe.batch_size) if places is None else places

    def __call__(self, number: int) -> Batch:
        """Return the batch; rows without a text are listed in it, not part of it.

        Texts of more tokens than the tower reads are cut.
        """
        rows = self._rows(number)
        first_place = number * self.recipe.batch_size
        texts = []
        places = []
        bad = []
        for place in self.places:
            row = int(rows.raw[place])
            seed = seed_of(self.recipe.seed, "caption", first_place + place)
            try:
                text = self._text(row, int(rows.views[place]), seed)
            except BadRow as error:
                bad.append(bad_row(self.sources.raw, row, error))
                continue
            texts.append(drop_words(text, self.recipe.word_dropout, seed))
            places.append(place)
        return Batch(
            pixels=None,
            tokens=tokenize_all(texts, self.tokenize),
            places=np.array(places, dtype=np.int64),
            same_modality=features_of(rows.caches, rows.cache_rows),
            other_modality=self._unpaired_images(number),
            bad=bad,
        )

    def _rows(self, number: int) -> _TextRows:
        """Return the raw and cached rows of a batch."""
        sources = self.sources
        first_place = number * self.recipe.batch_size
        usable, epochs = self.order.take(first_place, self.recipe.batch_size)
        policy = sources.text_policy
        views = epochs % (1 if policy is None else policy.count)
        if sources.pairs is None:
            raw, cache_rows = sources.text_rows.locate(usable, views)
            return _TextRows(raw, views, sources.text_caches, cache_rows)

        places = range(first_place, first_place + len(usable))
        seeds = [seed_of(self.recipe.seed, "sentence", place) for place in places]
        raw = sources.pairs.draw(usable, seeds)
        image_rows = sources.pairs.images[usable]
        return _TextRows(raw, views, sources.image_caches, [image_rows])

    def _unpaired_images(self, number: int) -> tuple[Tensor, ...] | None:
        """Return each teacher's embeddings of images; None where texts are paired with images."""
        sources = self.sources
        if sources.pairs is not None:
            return None
        return unpaired_features(
            sources.image_caches, sources.image_rows, self.unpaired, number, self.recipe
        )

    def _text(self, number: int, view: int, seed: int) -> str:
        """Return the text of a raw row.

        It is the text whose embedding a text cache holds: the row's first, or of several views this
        one. Of a pair it is any of the row's texts.
        """
        row = self.sources.raw[number]
        policy = self.sources.text_policy
        if policy is not None:
            return policy.draw(row.key, view, row.texts)
        text = ""
        if row.texts:
            choice = 0 if self.sources.pairs is None else seed % len(row.texts)
            text = row.texts[choice]
        if not text.strip():
            raise BadRow("sentence is empty")
        return text


def drop_words(text: str, share: float, seed: int) -> str:
    """Return a text without each of its words with probability ``share``; at least one word stays.

    Source: random deletion, one of the four operations of EDA (Wei and Zou, 2019).
    """
    if not share:
        return text
    words = text.split()
    draws = np.random.default_rng(seed).random(len(words))
    kept = []
    for word, draw in zip(words, draws, strict=True):
        if draw >= share or draw == draws.max():
            kept.append(word)
    return " ".join(kept)
