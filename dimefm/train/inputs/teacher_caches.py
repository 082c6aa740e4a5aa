"""The caches of a run, opened and checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.cache import FeatureCache
from dimefm.cache.manifest import FILE as MANIFEST
from dimefm.cache.manifest import encoder_mismatch
from dimefm.curate.neighbours import Neighbours
from dimefm.data.alignment import Aligned
from dimefm.data.views.patch_tokens import expect_rows, expect_tokens
from dimefm.errors import CacheError, RecipeError
from dimefm.recipe import Recipe


def open_caches(recipe: Recipe, kind: str) -> list[FeatureCache]:
    """Open the caches that the recipe names for ``kind``, one for each teacher."""
    roots = getattr(recipe, f"{kind}_cache")
    if not roots:
        raise RecipeError(
            f"--{kind}-cache is not given; the student learns from cached teacher features. Fix:"
            " make them with extract-features"
        )
    caches = [_open_cache(root, kind, recipe.scratch) for root in roots]
    expect_rows(caches)
    return caches


def _open_cache(root: str, kind: str, scratch: str | None) -> FeatureCache:
    """Open one cache; the folder around ``images/`` and ``texts/`` gets a hint."""
    inner = Path(root) / f"{kind}s"
    if not (Path(root) / MANIFEST).exists() and (inner / MANIFEST).exists():
        raise CacheError(
            f"--{kind}-cache {root}: no {MANIFEST}, so no cache. Fix: name {inner}, if that is"
            " meant"
        )
    return FeatureCache(root, scratch)


def open_tokens(recipe: Recipe, kind: str, rows: Sequence[FeatureCache]) -> list[FeatureCache]:
    """Open the recipe's caches of tokens of ``kind``; raise unless each is of the teacher of its
    cache of ``rows``.
    """
    roots = getattr(recipe, f"{kind}_tokens")
    caches = [_open_cache(root, kind, recipe.scratch) for root in roots]
    if caches and len(caches) != len(rows):
        raise RecipeError(
            f"{kind}_tokens names {len(caches)} caches and --{kind}-cache {len(rows)}. Fix: name"
            " one for each, in the same order"
        )
    expect_tokens(caches)
    _refuse_other_kind(caches, kind)
    _refuse_other_teachers(caches, rows)
    return caches


def open_neighbours(recipe: Recipe, caches: Sequence[FeatureCache]) -> tuple[Neighbours, ...]:
    """Open the graph of each text cache, where the recipe names them; raise unless each is of its
    cache.
    """
    if recipe.neighbours and len(recipe.neighbours) != len(caches):
        raise RecipeError(
            f"neighbours names {len(recipe.neighbours)} graphs and --text-cache {len(caches)}"
            " caches. Fix: name one for each cache, in the same order"
        )
    graphs = tuple(Neighbours(folder, recipe.scratch) for folder in recipe.neighbours)
    for graph, cache in zip(graphs, caches, strict=False):
        graph.check(cache)
        if recipe.neighbours_among > graph.k:
            raise RecipeError(
                f"neighbours_among = {recipe.neighbours_among}, but the graph has {graph.k} of each"
                " row. Fix: lower it"
            )
    return graphs


def refuse_strangers(image_caches: list[FeatureCache], text_caches: list[FeatureCache]) -> None:
    """Raise unless all caches hold rows of their kind, and cache i of images and cache i of
    sentences are of one teacher.
    """
    if text_caches and len(image_caches) != len(text_caches):
        raise RecipeError(
            f"--image-cache names {len(image_caches)} caches and --text-cache {len(text_caches)}."
            " Fix: name one of each for every teacher, in the same order"
        )
    _refuse_other_kind(image_caches, "image")
    _refuse_other_kind(text_caches, "text")
    _refuse_other_teachers(image_caches, text_caches)


def _refuse_other_teachers(
    image_caches: Sequence[FeatureCache], text_caches: Sequence[FeatureCache]
) -> None:
    """Raise CacheError unless image cache i and text cache i are of one teacher.

    The longer list may go on alone.
    """
    for images, texts in zip(image_caches, text_caches, strict=False):
        encoder = images.manifest.encoder
        different = encoder_mismatch(encoder, texts.manifest.encoder)
        if not different:
            continue
        remedy = "extract one of them again with the other's teacher"
        for cache in text_caches:
            if not encoder_mismatch(encoder, cache.manifest.encoder):
                remedy = "name both kinds in the same order"
        raise CacheError(
            f"{images.store} and {texts.store} were made by different teachers"
            f" ({'; '.join(different)}). Fix: {remedy}"
        )


def _refuse_other_kind(caches: Sequence[FeatureCache], kind: str) -> None:
    """Raise CacheError unless all caches hold something, and of this kind."""
    for cache in caches:
        if cache.manifest.kind != kind:
            raise CacheError(
                f"{cache.store}: holds {cache.manifest.kind} features, {kind} features are needed."
                " Fix: swap the folders"
            )
        if not len(cache):
            raise CacheError(
                f"{cache.store}: holds no rows; every row was quarantined. Fix: see"
                " quarantine.jsonl there, and correct the source"
            )


def refuse_none_in_common(*sides: tuple[Aligned | None, list[FeatureCache]]) -> None:
    """Raise CacheError when several caches of the same rows have no good row in common."""
    for rows, caches in sides:
        if len(caches) > 1 and not len(rows):
            names = " and ".join(str(cache.store) for cache in caches)
            raise CacheError(
                f"{names} have no good row in common. Fix: see quarantine.jsonl in each, and choose"
                " other teachers"
            )


def refuse_further_captions(caches: Sequence[FeatureCache], why: str) -> None:
    """Raise CacheError, saying ``why``, when a text cache holds more than the first sentence of
    each row.
    """
    for cache in caches:
        if cache.manifest.how.get("captions") == "all":
            raise CacheError(
                f"{cache.store}: holds every sentence of each row; {why}. Fix: extract them again"
                " with --captions first"
            )
