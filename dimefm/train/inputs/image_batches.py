"""The batch of step k as a pure function of (seed, k), loaded ahead by threads.

Threads suffice because decoding and resizing release the interpreter lock, and they share the
memory maps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dimefm.cache import FeatureCache
from dimefm.data import Row, Rows
from dimefm.data.alignment import Aligned
from dimefm.errors import BadRow, CacheError
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.runtime.threads import prefetch_map
from dimefm.train.inputs.pair_sentences import Sentences
from dimefm.train.inputs.sampler import Order
from dimefm.train.inputs.sampling import other_order, own_order
from dimefm.train.inputs.sources import Sources
from dimefm.train.inputs.student_views import StudentTransform


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B places, of which this process has n that could be read.

    ``pixels`` uint8 [n, S, S, 3] or ``tokens`` [n, L] or (pairs) both are what the student encodes
    at ``places`` [n], ascending. ``own`` are each teacher's rows [B, D] of all places, whoever
    encodes them, and ``other`` its rows [N, D] of the other kind (None: those of ``own``); of pairs
    these are the rows [B, D] of the sentences at all places. Where a step shows V views or C
    captions, these have an axis of V or C behind the first. ``bad`` are the rows of this process
    that were left out.

    ``hidden`` [n, L] are the tokens hidden from the first captions. ``teacher_extras`` are what
    some terms ask of each teacher, by the name of the field of :class:`~dimefm.losses.Features`:
    rows [B, ...] of all places.
    """

    pixels: Tensor | None
    tokens: Tensor | None
    places: np.ndarray
    own: tuple[Tensor, ...]
    other: tuple[Tensor, ...] | None
    bad: list[dict]
    hidden: Tensor | None = None
    teacher_extras: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens if self.pixels is None else self.pixels)

    @property
    def paired(self) -> bool:
        """Whether images and sentences are encoded, and rows of both kinds belong to the places."""
        return self.pixels is not None and self.tokens is not None


class Batches:
    """Loads micro-batch ``number`` of images, with cached features or (pairs) sentences or both; of
    ``places`` (None: all) the images."""

    def __init__(
        self,
        sources: Sources,
        recipe: Recipe,
        size: int,
        tokenizer: Callable | None,
        places: Sequence[int] | None = None,
    ):
        self.sources, self.recipe, self.size = sources, recipe, size
        self.places = range(recipe.batch_size) if places is None else places
        self.own, self.other = own_order(sources, recipe), other_order(sources, recipe)
        self.view = StudentTransform.from_recipe(recipe, sources.views, size)
        self.sentences = None if tokenizer is None else Sentences(sources, recipe, tokenizer)

    def __call__(self, number: int) -> Batch:
        """Return the batch; unreadable rows are left out and listed."""
        recipe, sources = self.recipe, self.sources
        first = number * recipe.batch_size
        usable, epochs = self.own.take(first, recipe.batch_size)
        raw, _ = sources.locate(usable)
        views, sentences, kept, bad = [], [], [], []
        for place in self.places:
            try:
                row = sources.raw[int(raw[place])]
                view = self._views(row, int(epochs[place]), first + place)
                sentence = self._sentences(int(raw[place]), row, first + place, int(epochs[place]))
            except BadRow as error:
                bad.append(complaint(sources.raw, int(raw[place]), error))
                continue
            views.append(view)
            sentences.append(sentence)
            kept.append(place)
        places = np.array(kept, dtype=np.int64)
        shape = (
            0,
            *([recipe.views_per_step] if recipe.views_per_step > 1 else []),
            self.size,
            self.size,
            3,
        )
        pixels = torch.from_numpy(np.stack(views) if views else np.empty(shape, np.uint8))
        own = shown_rows(sources, usable, epochs, recipe.views_per_step, "image")
        if self.sentences is None:
            other = drawn(sources.text_caches, sources.text_rows, self.other, number, recipe)
            return Batch(pixels, None, places, own, other, bad)
        tokens, hidden = self.sentences.tokens(sentences, places + first)
        other = shown_rows(sources, usable, epochs, recipe.captions_per_step, "text")
        return Batch(
            pixels,
            tokens,
            places,
            own,
            other,
            bad,
            hidden,
            teacher_extras(sources, recipe, usable, epochs, first),
        )

    def _views(self, row: Row, epoch: int, place: int) -> np.ndarray:
        """Return uint8 pixels [S, S, 3] of an image, [V, S, S, 3] of V views; of cached ones the
        next in each epoch.
        """
        count, policy = self.recipe.views_per_step, self.sources.views
        numbers = [(epoch * count + view) % policy.count if policy else 0 for view in range(count)]
        seeds = [
            seed_of(self.recipe.seed, "view", place, *([view] if view else []))
            for view in range(count)
        ]
        found = self.view.several(row.image, row.key, list(zip(numbers, seeds, strict=True)))
        return found[0] if count == 1 else np.stack(found)

    def _sentences(self, number: int, row: Row, place: int, epoch: int) -> list[str]:
        return [] if self.sentences is None else self.sentences.of(number, row, place, epoch)


def tokens_of(sentences: list[str], tokenize: Callable[[list[str]], Tensor]) -> Tensor:
    """Return the tokens [n, L] of n sentences, which may be none."""
    return tokenize(sentences or [""])[: len(sentences)]


def complaint(rows: Rows, number: int, error: BadRow) -> dict:
    """Return the record of raw row ``number`` that was left out."""
    shard, local = rows.locate(number)
    return {"source": rows.shards[shard].name, "row": local, "reason": str(error)}


def shown_rows(
    sources: Sources, usable: np.ndarray, epochs: np.ndarray, count: int, kind: str
) -> tuple[Tensor, ...]:
    """Return each teacher's rows of what a step shows of usable rows [B]: [B, D], or [B, count, D]
    of several views.

    Of a cache of several views a row they are the next ``count`` each epoch, of a cache of one a
    row the same again.
    """
    images = len(sources.image_caches)
    caches, columns = sources.image_caches, slice(images)
    if kind == "text":
        caches, columns = sources.text_caches, slice(images, images + len(sources.text_caches))
    shown = [epochs * count + view for view in range(count if caches else 0)]
    found = [features_of(caches, sources.locate(usable, view)[1][columns]) for view in shown]
    return (
        found[0]
        if len(found) == 1
        else tuple(torch.stack(each, dim=1) for each in zip(*found, strict=True))
    )


def teacher_extras(
    sources: Sources, recipe: Recipe, usable: np.ndarray, epochs: np.ndarray, first: int
) -> dict[str, tuple[Tensor, ...]]:
    """Return what some terms ask of each teacher for the usable rows [B] at the places from
    ``first`` on; see Batch.
    """
    found = {}
    if sources.neighbours:
        seeds = [seed_of(recipe.seed, "neighbour", first + place) for place in range(len(usable))]
        located = sources.locate(usable, epochs * recipe.captions_per_step)[1][
            len(sources.image_caches) :
        ]
        texts = located[: len(sources.text_caches)]
        graphs = zip(sources.neighbours, texts, strict=True)
        rows = [graph.draw(own, seeds, (0, recipe.neighbours_among)) for graph, own in graphs]
        nearest = [np.where(drawn < 0, own, drawn) for drawn, own in zip(rows, texts, strict=True)]
        found["neighbor_text"] = features_of(sources.text_caches, nearest)
    if sources.tokens:
        columns = iter(
            sources.locate(usable)[1][len(sources.image_caches) + len(sources.text_caches) :]
        )
        for name, caches in zip(("patches", "words"), sources.tokens, strict=True):
            found[name] = tuple(torch.from_numpy(cache[next(columns)]) for cache in caches)
    return found


def drawn(
    caches: Sequence[FeatureCache], rows: Aligned, order: Order, number: int, recipe: Recipe
) -> tuple[Tensor, ...]:
    """Return each teacher's rows [N, D] of the other kind for batch ``number``: drawn by
    themselves, so unpaired.
    """
    count = recipe.texts_per_step or recipe.batch_size
    return features_of(caches, rows.locate(order.take(number * count, count)[0])[1])


def features_of(caches: Sequence[FeatureCache], rows: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """Return the rows [n, D] of each cache; raise CacheError naming shard and row of one not finite
    or without length.
    """
    return tuple(_features(cache, found) for cache, found in zip(caches, rows, strict=True))


def _features(cache: FeatureCache, rows: np.ndarray) -> Tensor:
    found = cache[rows]
    lengths = np.linalg.norm(found.astype(np.float32), axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        info, local = cache.locate(int(rows[wrong[0]]))
        raise CacheError(
            f"{cache.store.where(info.file)}, row {local}: the vector has length"
            f" {lengths[wrong[0]]}; the shard was damaged after extraction: see dimefm cache verify"
            " --sha256, and extract it again"
        )
    return torch.from_numpy(found)


def prefetch(
    load: Callable[[int], Batch], numbers: Iterator[int], workers: int
) -> Generator[Batch]:
    """Yield ``load(n)`` for each n in order, with ``workers`` threads a few batches ahead.

    While a batch is in use, ``workers`` + 1 others are loading or loaded.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
        loaded = prefetch_map(pool, workers + 2, load, numbers)
        with contextlib.closing(loaded):
            for _, batch in loaded:
                yield batch
