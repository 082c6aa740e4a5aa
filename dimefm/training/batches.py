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
from PIL import Image
from torch import Tensor

from dimefm.cache import FeatureCache
from dimefm.data import Rows
from dimefm.data.align import Aligned
from dimefm.data.augment import Augment, center
from dimefm.data.images import decode
from dimefm.data.order import epochs_of_step, rows_of_step, seed_of
from dimefm.errors import BadRow, CacheError, DataError
from dimefm.recipe import Recipe
from dimefm.training.captions import Captions
from dimefm.training.sources import Sources


@dataclass(frozen=True)
class Batch:
    """One micro-batch: what the student encodes, uint8 pixels [B, S, S, 3] or tokens [B, L] or (pairs) both; each teacher's
    ``own`` rows [B, D] of the same inputs and ``other`` rows [N, D] of the other kind; the rows left out."""

    pixels: Tensor | None
    tokens: Tensor | None
    own: tuple[Tensor, ...]
    other: tuple[Tensor, ...]
    bad: list[dict]

    def __len__(self) -> int:
        return len(self.tokens if self.pixels is None else self.pixels)


class Batches:
    """Loads micro-batch ``number`` of images, with cached features or (pairs) sentences."""

    def __init__(self, sources: Sources, recipe: Recipe, size: int, tokenizer: Callable | None):
        self.sources, self.recipe, self.size, self.tokenizer = sources, recipe, size, tokenizer
        self.augment = Augment(recipe.crop_scale, recipe.crop_ratio, recipe.flip, recipe.resize)
        self.replayed = sources.views if recipe.view == "cached" else None
        self.captions = Captions(sources.raw, recipe.captions) if tokenizer is not None else None

    def __call__(self, number: int) -> Batch:
        """Return the batch; unreadable rows are left out and listed. Raises DataError when no row is readable."""
        recipe, sources = self.recipe, self.sources
        usable = rows_of_step(number, recipe.batch_size, len(sources), recipe.seed, "images")
        shown = epochs_of_step(number, recipe.batch_size, len(sources)) % (sources.views.count if sources.views else 1)
        raw, cached = sources.locate(usable, shown)
        views, sentences, kept, bad = [], [], [], []
        for place, (row_number, view_number) in enumerate(zip(raw.tolist(), shown.tolist(), strict=True)):
            try:
                view, sentence = self._row(row_number, view_number, seed_of(recipe.seed, "view", number, place))
            except BadRow as error:
                bad.append(complaint(sources.raw, row_number, error))
                continue
            views.append(view)
            sentences.append(sentence)
            kept.append(place)
        if not kept:
            raise DataError(f"batch {number}: none of its {len(raw)} rows can be read; the first: {bad[0]}")
        pixels = torch.from_numpy(np.stack(views))
        if self.tokenizer is not None:
            return Batch(pixels, self.tokenizer(sentences), (), (), bad)
        own = features_of(sources.image_caches, [rows[kept] for rows in cached])
        return Batch(pixels, None, own, drawn(sources.text_caches, sources.text_rows, number, recipe, "texts"), bad)

    def _row(self, number: int, view_number: int, seed: int) -> tuple[np.ndarray, str | None]:
        row = self.sources.raw[number]
        view = self._view(decode(row.image), row.key, view_number, seed)
        if self.captions is None:
            return view, None
        sentence = self.captions(number, row, seed)
        if not sentence or not sentence.strip():
            raise BadRow("has no sentence to pair its image with")
        return view, sentence

    def _view(self, image: Image.Image, key: str, view: int, seed: int) -> np.ndarray:
        """Return what the student sees of an image, uint8 [S, S, 3]: a view of the cache, the centre, or free crops."""
        if self.replayed is not None:
            crop = self.replayed.cut(image, key, view)
            return np.asarray(crop.resize((self.size, self.size), Image.Resampling.BICUBIC))
        return center(image, self.size) if self.recipe.view == "center" else self.augment(image, self.size, seed)


def complaint(rows: Rows, number: int, error: BadRow) -> dict:
    """Return the record of raw row ``number`` that was left out."""
    shard, local = rows.locate(number)
    return {"source": rows.shards[shard].name, "row": local, "reason": str(error)}


def drawn(caches: Sequence[FeatureCache], rows: Aligned, number: int, recipe: Recipe, what: str) -> tuple[Tensor, ...]:
    """Return each teacher's rows [N, D] of the other kind for batch ``number``: drawn by themselves, so unpaired."""
    wanted = rows_of_step(number, recipe.texts_per_step or recipe.batch_size, len(rows), recipe.seed, what)
    return features_of(caches, rows.locate(wanted)[1])


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
