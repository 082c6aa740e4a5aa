"""The batch of step k as a pure function of (seed, k), loaded ahead by threads.

Threads suffice because decoding and resizing release the interpreter lock, and they share the memory maps.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dimefm.cache import FeatureCache
from dimefm.data.augment import Augment, center
from dimefm.data.images import decode
from dimefm.data.order import rows_of_step, seed_of
from dimefm.errors import BadRow, CacheError, DataError
from dimefm.recipe import Recipe
from dimefm.training.captions import Captions
from dimefm.training.sources import Sources


@dataclass(frozen=True)
class Batch:
    """One micro-batch: uint8 pixels [B, S, S, 3], teacher rows [B, D] and [N, D] or tokens [B, L], and rows left out."""

    pixels: Tensor
    teacher_image: Tensor | None
    teacher_text: Tensor | None
    tokens: Tensor | None
    bad: list[dict]


class Batches:
    """Loads micro-batch ``number`` of a run."""

    def __init__(self, sources: Sources, recipe: Recipe, size: int, tokenizer: Callable | None):
        self.sources, self.recipe, self.size, self.tokenizer = sources, recipe, size, tokenizer
        self.augment = Augment(recipe.crop_scale, recipe.crop_ratio, recipe.flip, recipe.resize)
        self.captions = Captions(sources.images, recipe.captions) if tokenizer is not None else None

    def __call__(self, number: int) -> Batch:
        """Return the batch; unreadable rows are left out and listed. Raises DataError when no row is readable."""
        recipe = self.recipe
        usable = rows_of_step(number, recipe.batch_size, len(self.sources), recipe.seed, "images")
        raw, cached = self.sources.locate(usable)
        views, sentences, kept, bad = [], [], [], []
        for place, row_number in enumerate(raw):
            try:
                view, sentence = self._row(int(row_number), seed_of(recipe.seed, "view", number, place))
            except BadRow as error:
                bad.append(self._complaint(int(row_number), error))
                continue
            views.append(view)
            sentences.append(sentence)
            kept.append(place)
        if not kept:
            raise DataError(f"batch {number}: none of its {len(raw)} rows can be read; the first: {bad[0]}")
        pixels = torch.from_numpy(np.stack(views))
        if self.tokenizer is not None:
            return Batch(pixels, None, None, self.tokenizer(sentences), bad)
        texts = self.sources.text_cache
        wanted = rows_of_step(number, recipe.texts_per_step or recipe.batch_size, len(texts), recipe.seed, "texts")
        images = _features(self.sources.image_cache, cached[kept])
        return Batch(pixels, images, _features(texts, wanted), None, bad)

    def _row(self, number: int, seed: int) -> tuple[np.ndarray, str | None]:
        row = self.sources.images[number]
        image = decode(row.image)
        view = center(image, self.size) if self.recipe.view == "center" else self.augment(image, self.size, seed)
        if self.captions is None:
            return view, None
        sentence = self.captions(number, row, seed)
        if not sentence or not sentence.strip():
            raise BadRow("has no sentence to pair its image with")
        return view, sentence

    def _complaint(self, number: int, error: BadRow) -> dict:
        shard, local = self.sources.images.locate(number)
        return {"source": self.sources.images.shards[shard].name, "row": local, "reason": str(error)}


def _features(cache: FeatureCache, rows: np.ndarray) -> Tensor:
    """Return feature rows [n, D]; raise CacheError naming shard and row when one is not finite or has no length."""
    found = cache[rows]
    lengths = np.linalg.norm(found.astype(np.float32), axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        info, local = cache.locate(int(rows[wrong[0]]))
        raise CacheError(
            f"{cache.root / info.file}, row {local}: the vector has length {lengths[wrong[0]]}; the shard was damaged after "
            "extraction: see dimefm cache verify --sha256, and extract it again"
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
