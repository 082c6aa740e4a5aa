"""The batch of step k as a pure function of (seed, k), loaded ahead by threads.

Threads suffice because decoding and resizing release the interpreter lock, and they share the memory maps.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dimefm.cache import FeatureCache
from dimefm.data import Rows
from dimefm.data.align import Aligned
from dimefm.data.order import Order, seed_of
from dimefm.data.train_views import Viewer
from dimefm.errors import BadRow, CacheError
from dimefm.recipe import Recipe
from dimefm.training.captions import Captions
from dimefm.training.orders import other_order, own_order
from dimefm.training.sources import Sources


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B places, of which this process has n that could be read.

    ``pixels`` uint8 [n, S, S, 3] or ``tokens`` [n, L] or (pairs) both are what the student encodes at ``places`` [n],
    ascending. ``own`` are each teacher's rows [B, D] of all places, whoever encodes them, and ``other`` its rows [N, D] of
    the other kind (None: those of ``own``); of pairs these are the rows [B, D] of the sentences at all places. ``bad`` are
    the rows of this process that were left out.
    """

    pixels: Tensor | None
    tokens: Tensor | None
    places: np.ndarray
    own: tuple[Tensor, ...]
    other: tuple[Tensor, ...] | None
    bad: list[dict]

    def __len__(self) -> int:
        return len(self.tokens if self.pixels is None else self.pixels)

    @property
    def paired(self) -> bool:
        """Whether images and sentences are encoded, and rows of both kinds belong to the places."""
        return self.pixels is not None and self.tokens is not None


class Batches:
    """Loads micro-batch ``number`` of images, with cached features or (pairs) sentences or both; of ``places`` (None: all)
    the images."""

    def __init__(
        self, sources: Sources, recipe: Recipe, size: int, tokenizer: Callable | None, places: Sequence[int] | None = None
    ):
        self.sources, self.recipe, self.size, self.tokenizer = sources, recipe, size, tokenizer
        self.places = range(recipe.batch_size) if places is None else places
        self.own, self.other = own_order(sources, recipe), other_order(sources, recipe)
        self.view = Viewer.of(recipe, sources.views, size)
        self.captions = Captions(sources.raw, recipe.captions) if tokenizer is not None else None

    def __call__(self, number: int) -> Batch:
        """Return the batch; unreadable rows are left out and listed."""
        recipe, sources = self.recipe, self.sources
        first = number * recipe.batch_size
        usable, epochs = self.own.take(first, recipe.batch_size)
        shown = epochs % (sources.views.count if sources.views else 1)
        raw, cached = sources.locate(usable, shown)
        views, sentences, kept, bad = [], [], [], []
        for place in self.places:
            row_number, view_number = int(raw[place]), int(shown[place])
            try:
                view, sentence = self._row(row_number, view_number, seed_of(recipe.seed, "view", first + place))
            except BadRow as error:
                bad.append(complaint(sources.raw, row_number, error))
                continue
            views.append(view)
            sentences.append(sentence)
            kept.append(place)
        places = np.array(kept, dtype=np.int64)
        pixels = torch.from_numpy(np.stack(views) if views else np.empty((0, self.size, self.size, 3), np.uint8))
        if self.tokenizer is not None:
            count = len(sources.image_caches)
            own, other = features_of(sources.image_caches, cached[:count]), features_of(sources.text_caches, cached[count:])
            return Batch(pixels, tokens_of(sentences, self.tokenizer), places, own, other, bad)
        other = drawn(sources.text_caches, sources.text_rows, self.other, number, recipe)
        return Batch(pixels, None, places, features_of(sources.image_caches, cached), other, bad)

    def _row(self, number: int, view_number: int, seed: int) -> tuple[np.ndarray, str | None]:
        row = self.sources.raw[number]
        view = self.view(row.image, row.key, view_number, seed)
        if self.captions is None:
            return view, None
        held = self.sources.text_caches  # of the first sentence
        sentence = next(iter(row.texts), None) if held else self.captions(number, row, seed)
        if not sentence or not sentence.strip():
            raise BadRow("has no sentence to pair its image with")
        return view, sentence


def tokens_of(sentences: list[str], tokenize: Callable[[list[str]], Tensor]) -> Tensor:
    """Return the tokens [n, L] of n sentences, which may be none."""
    return tokenize(sentences or [""])[: len(sentences)]


def complaint(rows: Rows, number: int, error: BadRow) -> dict:
    """Return the record of raw row ``number`` that was left out."""
    shard, local = rows.locate(number)
    return {"source": rows.shards[shard].name, "row": local, "reason": str(error)}


def drawn(caches: Sequence[FeatureCache], rows: Aligned, order: Order, number: int, recipe: Recipe) -> tuple[Tensor, ...]:
    """Return each teacher's rows [N, D] of the other kind for batch ``number``: drawn by themselves, so unpaired."""
    count = recipe.texts_per_step or recipe.batch_size
    return features_of(caches, rows.locate(order.take(number * count, count)[0])[1])


def features_of(caches: Sequence[FeatureCache], rows: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """Return the rows [n, D] of each cache; raise CacheError naming shard and row of one not finite or without length."""
    return tuple(_features(cache, found) for cache, found in zip(caches, rows, strict=True))


def _features(cache: FeatureCache, rows: np.ndarray) -> Tensor:
    found = cache[rows]
    lengths = np.linalg.norm(found.astype(np.float32), axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        info, local = cache.locate(int(rows[wrong[0]]))
        raise CacheError(
            f"{cache.store.where(info.file)}, row {local}: the vector has length {lengths[wrong[0]]}; the shard was damaged "
            "after extraction: see dimefm cache verify --sha256, and extract it again"
        )
    return torch.from_numpy(found)


def prefetch(load: Callable[[int], Batch], numbers: Iterator[int], workers: int) -> Generator[Batch]:
    """Yield ``load(n)`` for each n in order, with ``workers`` threads a few batches ahead."""
    with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
        ahead = deque(pool.submit(load, n) for n in itertools.islice(numbers, workers + 1))
        try:
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(load, n) for n in itertools.islice(numbers, 1))
                yield batch
        finally:
            for future in ahead:
                future.cancel()
