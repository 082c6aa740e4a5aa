"""The batch of step k as a pure function of (seed, k), loaded ahead by threads.

Threads suffice because decoding and resizing release the interpreter lock, and they share the
memory maps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dimefm.data import Row
from dimefm.errors import BadRow
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.runtime.threads import prefetch_map
from dimefm.train.inputs.batch import Batch, Shown, bad_row
from dimefm.train.inputs.cached_features import (
    extra_features,
    image_features,
    text_features,
    unpaired_features,
)
from dimefm.train.inputs.pair_sentences import Sentences
from dimefm.train.inputs.sampling import student_order, unpaired_order
from dimefm.train.inputs.sources import Sources
from dimefm.train.inputs.student_views import StudentTransform


@dataclass
class _Readable:
    """What this process could read of a batch, and what it could not."""

    places: list[int] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    bad: list[dict] = field(default_factory=list)


class Batches:
    """Loads micro-batch ``number`` of images, with cached features, captions (pairs), or both.

    The images are those of ``places`` (None: all).
    """

    def __init__(
        self,
        sources: Sources,
        recipe: Recipe,
        size: int,
        tokenizer: Callable | None,
        places: Sequence[int] | None = None,
    ):
        self.sources = sources
        self.recipe = recipe
        self.size = size
        self.places = range(recipe.batch_size) if places is None else places
        self.order = student_order(sources, recipe)
        self.unpaired = unpaired_order(sources, recipe)
        self.views = Shown(recipe.views_per_step)
        self.captions = Shown(recipe.captions_per_step)
        self.view = StudentTransform.from_recipe(recipe, sources.views, size)
        self.sentences: Sentences | None = None
        if tokenizer is not None:
            self.sentences = Sentences(sources, recipe, tokenizer)

    def __call__(self, number: int) -> Batch:
        """Return the batch; unreadable rows are listed in it, not part of it."""
        sources = self.sources
        first_place = number * self.recipe.batch_size
        usable, epochs = self.order.take(first_place, self.recipe.batch_size)
        raw, _ = sources.locate(usable)
        readable = self._read(raw, epochs, first_place)
        pixels = self._stack_pixels(readable.pixels)
        places = np.array(readable.places, dtype=np.int64)
        images = image_features(sources, usable, epochs, self.views)
        if self.sentences is None:
            texts = self._unpaired_texts(number)
            return Batch(pixels, None, places, images, texts, readable.bad)

        tokens, hidden = self.sentences.tokens(readable.captions, first_place + places)
        texts = text_features(sources, usable, epochs, self.captions)
        extras = extra_features(sources, self.recipe, usable, epochs, first_place)
        return Batch(pixels, tokens, places, images, texts, readable.bad, hidden, extras)

    def _read(self, raw: np.ndarray, epochs: np.ndarray, first_place: int) -> _Readable:
        """Read the images, and the captions of pairs, at the places of this process.

        ``raw`` [B] are the raw rows of the batch, ``epochs`` [B] their epochs.
        """
        readable = _Readable()
        for place in self.places:
            number = int(raw[place])
            epoch = int(epochs[place])
            place_in_run = first_place + place
            try:
                row = self.sources.raw[number]
                pixels = self._pixels(row, epoch, place_in_run)
                captions: list[str] = []
                if self.sentences is not None:
                    captions = self.sentences.choose(number, row, place_in_run, epoch)
            except BadRow as error:
                readable.bad.append(bad_row(self.sources.raw, number, error))
                continue
            readable.places.append(place)
            readable.pixels.append(pixels)
            readable.captions.append(captions)
        return readable

    def _pixels(self, row: Row, epoch: int, place: int) -> np.ndarray:
        """Return uint8 pixels [S, S, 3] of an image, [V, S, S, 3] of V views.

        Of cached views they are the next ones in each epoch.
        """
        policy = self.sources.views
        cached_count = 1 if policy is None else policy.count
        shown = []
        for view, number in enumerate(self.views.numbers(epoch)):
            key = (place, view) if view else (place,)  # the seed of the first view has no number
            seed = seed_of(self.recipe.seed, "view", *key)
            shown.append((number % cached_count, seed))
        views = self.view.several(row.image, row.key, shown)
        if len(views) == 1:
            return views[0]
        return np.stack(views)

    def _stack_pixels(self, pixels: list[np.ndarray]) -> Tensor:
        """Return the pixels of all images, which may be none, as one tensor."""
        if pixels:
            return torch.from_numpy(np.stack(pixels))
        shape = (0, *self.views.axis(), self.size, self.size, 3)
        return torch.from_numpy(np.empty(shape, np.uint8))

    def _unpaired_texts(self, number: int) -> tuple[Tensor, ...] | None:
        """Return each teacher's embeddings of texts; None where losses need no sentences."""
        sources = self.sources
        if sources.text_rows is None:
            return None
        return unpaired_features(
            sources.text_caches, sources.text_rows, self.unpaired, number, self.recipe
        )


def prefetch(
    load: Callable[[int], Batch], numbers: Iterator[int], workers: int
) -> Generator[Batch]:
    """Yield ``load(n)`` for each n in order, with ``workers`` threads a few batches ahead.

    While a batch is in use, ``workers`` + 1 others are loading or loaded.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
        loaded = prefetch_map(pool, workers + 2, load, numbers)
        with closing(loaded):
            for _, batch in loaded:
                yield batch
