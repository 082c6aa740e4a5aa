"""The teachers' cached embeddings that belong to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dimefm.cache import FeatureCache
from dimefm.curate.neighbours import Neighbours
from dimefm.data.alignment import Aligned
from dimefm.errors import CacheError
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.batch import Shown
from dimefm.train.inputs.sampler import Order
from dimefm.train.inputs.sources import Sources


@dataclass(frozen=True)
class CacheRows:
    """The rows [n] of some samples in each cache of a run; one column a cache."""

    images: list[np.ndarray]
    texts: list[np.ndarray]
    image_tokens: list[np.ndarray]
    text_tokens: list[np.ndarray]

    @staticmethod
    def locate(sources: Sources, usable: np.ndarray, view: np.ndarray | int = 0) -> CacheRows:
        """Return where the caches hold ``view`` of usable rows [n]."""
        _, columns = sources.locate(usable, view)
        token_caches = sources.tokens or ((), ())
        counts = [
            len(sources.image_caches),
            len(sources.text_caches),
            len(token_caches[0]),
            len(token_caches[1]),
        ]
        parts = []
        start = 0
        for count in counts:
            parts.append(columns[start : start + count])
            start += count
        return CacheRows(*parts)


def image_features(
    sources: Sources, usable: np.ndarray, epochs: np.ndarray, shown: Shown
) -> tuple[Tensor, ...]:
    """Return each teacher's embeddings [B, D] of images; [B, V, D] of several views.

    For a cache of several views they are the next ones in each epoch; for a cache of one view they
    are the same in each.
    """
    if not sources.image_caches:
        return ()
    views = []
    for number in shown.numbers(epochs):
        rows = CacheRows.locate(sources, usable, number).images
        views.append(features_of(sources.image_caches, rows))
    return _stack(views)


def text_features(
    sources: Sources, usable: np.ndarray, epochs: np.ndarray, shown: Shown
) -> tuple[Tensor, ...]:
    """Return each teacher's embeddings [B, D] of captions; [B, C, D] of several.

    See :func:`image_features`.
    """
    if not sources.text_caches:
        return ()
    captions = []
    for number in shown.numbers(epochs):
        rows = CacheRows.locate(sources, usable, number).texts
        captions.append(features_of(sources.text_caches, rows))
    return _stack(captions)


def _stack(views: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return for each teacher its views [B, D], as one tensor; of several [B, V, D]."""
    if len(views) == 1:
        return views[0]
    return tuple(torch.stack(of_teacher, dim=1) for of_teacher in zip(*views, strict=True))


def extra_features(
    sources: Sources, recipe: Recipe, usable: np.ndarray, epochs: np.ndarray, first_place: int
) -> dict[str, tuple[Tensor, ...]]:
    """Return what some losses need of each teacher for the usable rows [B], by name.

    The rows stand at the places of the run from ``first_place`` on. See :class:`Batch`.
    """
    extras = {}
    if sources.neighbours:
        first_caption = epochs * recipe.captions_per_step
        texts = CacheRows.locate(sources, usable, first_caption).texts
        places = range(first_place, first_place + len(usable))
        seeds = [seed_of(recipe.seed, "neighbour", place) for place in places]
        neighbor_rows = []
        for graph, rows in zip(sources.neighbours, texts, strict=True):
            drawn = _draw_neighbors(graph, rows, seeds, recipe.neighbours_among)
            neighbor_rows.append(drawn)
        extras["neighbor_text"] = features_of(sources.text_caches, neighbor_rows)
    if sources.tokens:
        rows = CacheRows.locate(sources, usable)
        image_tokens, text_tokens = sources.tokens
        extras["patches"] = _tokens_of(image_tokens, rows.image_tokens)
        extras["words"] = _tokens_of(text_tokens, rows.text_tokens)
    return extras


def _draw_neighbors(
    graph: Neighbours, rows: np.ndarray, seeds: list[int], among: int
) -> np.ndarray:
    """Return one of the nearest neighbors of each cache row [B]; the row itself if it has none."""
    drawn = graph.draw(rows, seeds, (0, among))
    return np.where(drawn < 0, rows, drawn)


def _tokens_of(caches: Sequence, rows: list[np.ndarray]) -> tuple[Tensor, ...]:
    """Return the tokens [B, K, E] that each cache of tokens holds."""
    pairs = zip(caches, rows, strict=True)
    return tuple(torch.from_numpy(cache[numbers]) for cache, numbers in pairs)


def unpaired_features(
    caches: Sequence[FeatureCache], aligned: Aligned, order: Order, number: int, recipe: Recipe
) -> tuple[Tensor, ...]:
    """Return each teacher's embeddings [N, D] of the other modality for batch ``number``.

    They have an order of their own, so they are unpaired.
    """
    count = recipe.texts_per_step or recipe.batch_size
    usable, _ = order.take(number * count, count)
    _, rows = aligned.locate(usable)
    return features_of(caches, rows)


def features_of(caches: Sequence[FeatureCache], rows: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """Return the embeddings [n, D] at the rows [n] of each cache.

    Raises CacheError, naming shard and row, for one that is not finite or has length 0.
    """
    pairs = zip(caches, rows, strict=True)
    return tuple(_checked_features(cache, numbers) for cache, numbers in pairs)


def _checked_features(cache: FeatureCache, rows: np.ndarray) -> Tensor:
    features = cache[rows]
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(features.astype(np.float32), axis=1)
    is_good = np.isfinite(lengths) & (lengths > 0)
    wrong = np.flatnonzero(~is_good)
    if len(wrong):
        first = wrong[0]
        info, local = cache.locate(int(rows[first]))
        raise CacheError(
            f"{cache.store.where(info.file)}, row {local}: the vector has length {lengths[first]};"
            " the shard was damaged after extraction. Fix: see dimefm cache verify --sha256, and"
            " extract it again"
        )
    return torch.from_numpy(features)
