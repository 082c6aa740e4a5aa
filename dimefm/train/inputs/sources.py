"""What a run learns from: raw images or sentences and cached features, opened and checked against
each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.cache import EncoderCard, FeatureCache
from dimefm.cache.importing.adopt import adopt_tsv
from dimefm.curate.neighbours import Neighbours
from dimefm.data import Columns, Rows, open_rows
from dimefm.data.alignment import Aligned, align, align_caches, align_pairs
from dimefm.data.grown_folders import as_cached
from dimefm.data.pairing import Pairs, keys_of
from dimefm.data.selection import Selection, select
from dimefm.data.sources import expand, local_root, shard_names
from dimefm.data.views.image_views import ViewPolicy
from dimefm.data.views.patch_tokens import TokenRows
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError, DataError, RecipeError
from dimefm.recipe import Recipe
from dimefm.train.inputs import dime_fm_names
from dimefm.train.inputs.teacher_caches import (
    open_caches,
    open_neighbours,
    open_tokens,
    refuse_further_captions,
    refuse_none_in_common,
    refuse_strangers,
)
from dimefm.train.inputs.view_checks import image_views, refuse_other_sentences, text_views


@dataclass(frozen=True)
class Sources:
    """Opened sources of a run: cache i of images and cache i of sentences are of teacher i.

    ``raw`` are the images that the student encodes. ``image_rows`` are those with features in all
    image caches, ``text_rows`` the sentences in all text caches, and ``views`` says what the image
    caches hold (None: the centre view). When a CLIP is trained from pairs there are no
    ``text_rows``: ``image_rows`` are the pairs with features in all caches, those of images and
    then those of sentences, or None without caches. Of these, ``text_policy`` says what the text
    caches hold (None: one sentence a row), ``neighbours`` has a graph for each of them, and
    ``tokens`` those of images and those of sentences for each teacher, where the recipe names them;
    their columns come last.
    """

    raw: Rows
    image_caches: tuple[FeatureCache, ...] = ()
    text_caches: tuple[FeatureCache, ...] = ()
    image_rows: Aligned | None = None
    text_rows: Aligned | None = None
    views: ViewPolicy | None = None
    text_policy: TextPolicy | None = None
    neighbours: tuple[Neighbours, ...] = ()
    tokens: tuple[tuple[TokenRows, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.raw) if self.image_rows is None else len(self.image_rows)

    @property
    def teachers(self) -> tuple[EncoderCard, ...]:
        """Identities of the teachers whose features these are."""
        return tuple(cache.manifest.encoder for cache in self.image_caches)

    def further_fingerprints(self) -> dict[str, list[str]]:
        """Return the fingerprints of graphs and of caches of tokens, by their keys in a recipe; of
        none an empty list.
        """
        tokens = zip(("image_tokens", "text_tokens"), self.tokens, strict=False)
        found = {name: [rows.cache.manifest.fingerprint for rows in each] for name, each in tokens}
        return {"neighbours": [graph.fingerprint for graph in self.neighbours], **found}

    def locate(
        self, usable: np.ndarray, view: np.ndarray | int = 0
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return (raw rows, the rows of ``view`` in each image cache, of pairs then those in each
        text cache) of usable row numbers."""
        return (usable, []) if self.image_rows is None else self.image_rows.locate(usable, view)


@dataclass(frozen=True)
class TextSources(Sources):
    """Opened sources of a text tower: ``raw`` are sentences.

    With text caches, ``text_rows`` are the sentences with features in all of them and
    ``image_rows`` any images. Without, ``pairs`` are images of the one image cache with the
    sentences of their keys.
    """

    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.pairs) if self.text_rows is None else len(self.text_rows)


def open_sources(recipe: Recipe, out: Path) -> Sources:
    """Open everything that ``recipe`` names; adopted TSV features go into ``out``.

    Raises RecipeError when something is not named, CacheError when features do not belong to the
    images or to each other or lack the recipe's views, DataError when a source cannot be read.
    """
    if recipe.text_student:
        return _text_sources(recipe)
    if recipe.tsv_file_list:
        return _dime_fm_form(recipe, out)
    if not recipe.images:
        raise RecipeError(
            "no images are given. Fix: name them with --images (or 'images' in the recipe)"
        )
    images = _rows(
        recipe, recipe.images, "pair" if recipe.text == "student" else "image", recipe.input_format
    )
    if recipe.text == "student":
        return _pair_sources(recipe, images)
    image_caches = open_caches(recipe, "image")
    text_caches = open_caches(recipe, "text") if recipe.text_cache else []
    return _image_sources(recipe, images, image_caches, text_caches)


def _pair_sources(recipe: Recipe, pairs: Rows) -> Sources:
    """Open what both towers learn from: raw pairs and, with teachers, their features of the same
    pairs.
    """
    if recipe.captions == "label":
        _refuse_selection(
            recipe,
            "--captions label reads the labels of whole files. Fix: leave the selection out, or say"
            " --captions text",
        )
    if recipe.texts_per_step is not None:
        raise RecipeError(
            "texts_per_step is for unpaired sentences; a pair has its own sentence. Fix: remove it"
        )
    if not (recipe.image_cache or recipe.text_cache):
        return Sources(pairs)
    if recipe.captions == "label":
        raise RecipeError(
            "--captions label makes sentences that no --text-cache holds. Fix: leave the caches"
            " out, or say --captions text"
        )
    image_caches, text_caches = open_caches(recipe, "image"), open_caches(recipe, "text")
    refuse_strangers(image_caches, text_caches)
    refuse_further_captions(text_caches, "a pair has one")
    texts = _rows(recipe, recipe.images, "text", recipe.input_format)
    pairs, texts = _as_cached(pairs, image_caches), _as_cached(texts, text_caches)
    if recipe.split is not None:
        _refuse_other_keys(pairs, texts, f"--split {recipe.split} divides by key")
    image_tokens, text_tokens = (
        open_tokens(recipe, "image", image_caches),
        open_tokens(recipe, "text", text_caches),
    )
    tokens = {"image_tokens": image_tokens, "text_tokens": text_tokens}
    rows = align_pairs(pairs, texts, image_caches, text_caches, **tokens)
    refuse_none_in_common((rows, [*image_caches, *text_caches, *image_tokens, *text_tokens]))
    policy = text_views(recipe, text_caches)
    if policy is not None:
        _refuse_other_keys(pairs, texts, "the views of sentences are drawn by key")
    views = image_views(recipe, image_caches)
    if image_tokens and (views or policy):
        flag = "views" if views else "text-views"
        raise CacheError(
            f"{image_tokens[0].store}: holds tokens of whole images and first sentences, the caches"
            f" of rows several views of them. Fix: extract the rows without --{flag}"
        )
    return Sources(
        pairs,
        tuple(image_caches),
        tuple(text_caches),
        rows,
        views=views,
        text_policy=policy,
        neighbours=open_neighbours(recipe, text_caches),
        tokens=tuple(tuple(map(TokenRows, caches)) for caches in tokens.values() if caches),
    )


def _refuse_other_keys(pairs: Rows, texts: Rows, why: str) -> None:
    """Raise RecipeError, saying ``why`` keys count, when one source gives its images other keys
    than its sentences.
    """
    for image_shard, text_shard in zip(pairs.shards, texts.shards, strict=True):
        if image_shard.keys() != text_shard.keys():
            raise RecipeError(
                f"{why}, and {image_shard.path} gives its images other keys than its sentences."
                " Fix: name a --key-column, also for the extraction"
            )


def _image_sources(
    recipe: Recipe, images: Rows, image_caches: list[FeatureCache], text_caches: list[FeatureCache]
) -> Sources:
    """Match raw images with the opened caches that an image tower learns from.

    Losses that need no sentences learn without text caches.
    """
    if not text_caches and recipe.texts_per_step is not None:
        raise RecipeError("texts_per_step is for a --text-cache. Fix: remove it, or name one")
    refuse_strangers(image_caches, text_caches)
    refuse_other_sentences(text_caches)
    views = image_views(recipe, image_caches)
    images = _as_cached(images, image_caches)
    image_rows = align(images, *image_caches)
    text_rows = align_caches(*text_caches) if text_caches else None
    refuse_none_in_common((image_rows, image_caches), (text_rows, text_caches))
    return Sources(images, tuple(image_caches), tuple(text_caches), image_rows, text_rows, views)


def _text_sources(recipe: Recipe) -> TextSources:
    """Open what a text tower learns from; see :class:`TextSources`."""
    extra_caches = [
        f"--{name.replace('_', '-')}"
        for name in ("images", "tsv_file_list")
        if getattr(recipe, name)
    ]
    if extra_caches:
        raise RecipeError(
            f"--text {recipe.text} trains a text tower from --texts and caches. Fix: leave"
            f" {' and '.join(extra_caches)} out, and train the image tower in a run of its own;"
            " dimefm eval elevater takes both (--model IMAGE_RUN --text-model TEXT_RUN)"
        )
    if not recipe.texts:
        raise RecipeError(
            "no sentences are given. Fix: name them with --texts (or 'texts' in the recipe)"
        )
    texts, image_caches = (
        _rows(recipe, recipe.texts, "text", recipe.input_format),
        open_caches(recipe, "image"),
    )
    text_caches = open_caches(recipe, "text") if recipe.text_cache else []
    refuse_strangers(image_caches, text_caches)
    for cache in image_caches:
        if cache.manifest.how.get("views") is not None:
            raise CacheError(
                f"{cache.store}: holds {cache.manifest.views} random crops of each image; a text"
                " tower learns against the center crop. Fix: extract the images without --views"
            )
    if not text_caches:
        return TextSources(texts, tuple(image_caches), pairs=_pairs(recipe, texts, image_caches))
    refuse_further_captions(text_caches, "a text tower learns from one a row")
    policy = text_views(recipe, text_caches)
    texts = _as_cached(texts, text_caches)
    image_rows, text_rows = align_caches(*image_caches), align(texts, *text_caches)
    refuse_none_in_common((image_rows, image_caches), (text_rows, text_caches))
    return TextSources(
        texts, tuple(image_caches), tuple(text_caches), image_rows, text_rows, text_policy=policy
    )


def _pairs(recipe: Recipe, texts: Rows, caches: list[FeatureCache]) -> Pairs:
    """Return the images of the one cache that have sentences; raise CacheError when none has."""
    if len(caches) > 1:
        raise RecipeError(
            f"--image-cache names {len(caches)} caches and --text-cache none; with several teachers"
            " a sentence needs the features of each. Fix: name a --text-cache for each"
        )
    if recipe.texts_per_step is not None:
        raise RecipeError(
            "texts_per_step is for a --text-cache; without one a step sees --batch-size images,"
            " each with a sentence of its key. Fix: remove it"
        )
    keys = [key for shard in texts.shards for key in shard.keys()]
    pairs = Pairs.from_cache(caches[0], keys)
    if len(keys) and not len(pairs):
        image = next(keys_of(caches[0]))
        raise CacheError(
            f"{caches[0].store}: holds no image with the key of a sentence ({keys[0]!r} in"
            f" {texts.shards[0].path} against {image!r}); expected equal keys, or KEY#NUMBER for"
            " several sentences of an image. Fix: extract with such keys, or give --text-cache"
        )
    return pairs


def _rows(recipe: Recipe, sources: Sequence[str], kind: str, input_format: str | None) -> Rows:
    """Open raw rows where and as the recipe says, those of its selection."""
    columns = Columns(
        image=recipe.image_column,
        text=recipe.text_column,
        key=recipe.key_column,
        separator=recipe.separator,
        root=local_root(recipe.dataroot, recipe.scratch),
    )
    where = {"dataroot": recipe.dataroot, "scratch": recipe.scratch}
    selection = _selection(recipe)
    return select(
        open_rows(sources, kind, input_format=input_format, columns=columns, **where), selection
    )


def _as_cached(rows: Rows, caches: Sequence[FeatureCache]) -> Rows:
    """Return rows with folders that have grown divided as the first cache divides them."""
    return as_cached(rows, caches[0]) if caches else rows


def _selection(recipe: Recipe) -> Selection:
    return Selection.parse(recipe.rows, recipe.split, recipe.limit)


def _refuse_selection(recipe: Recipe, why: str) -> None:
    """Raise RecipeError, saying ``why``, when the recipe selects rows."""
    if _selection(recipe) != Selection():
        raise RecipeError(f"{_selection(recipe)}: {why}")


def _files(recipe: Recipe, role: str, entries: Sequence[str]) -> list[Path]:
    """Return the files that the entries of one role in DIME-FM's form stand for."""
    files: list[Path] = []
    for entry in entries:
        named = expand(entry, recipe.dataroot, scratch=recipe.scratch)
        dime_fm_names.confirm(role, entry, named, recipe.tsv_file_list)
        files += named
    return files


def _dime_fm_form(recipe: Recipe, out: Path) -> Sources:
    """Open DIME-FM's own files: image, image-feature, text and text-feature TSVs or lists."""
    _refuse_two_forms(recipe)
    entries = dime_fm_names.by_role(recipe.tsv_file_list)
    images = _rows(recipe, entries["image"], "image", "tsv")
    image_features = _files(recipe, "image_feat", entries["image_feat"])
    text_features = _files(recipe, "text_feat", entries["text_feat"])
    image_cache = _adopted(images, entries["image_feat"][0], image_features, "image", out)
    if entries["text"]:
        texts = _rows(recipe, entries["text"], "text", "tsv")
        text_cache = _adopted(texts, entries["text_feat"][0], text_features, "text", out)
        _belong(texts, text_features, text_cache)
    else:
        root = local_root(recipe.dataroot, recipe.scratch)
        names = shard_names(text_features, root, recipe.scratch)
        text_cache = adopt_tsv(text_features, names, "text", out / "adopted" / "texts")
    return _image_sources(recipe, images, [image_cache], [text_cache])


def _refuse_two_forms(recipe: Recipe) -> None:
    both = [name for name in ("images", "image_cache", "text_cache") if getattr(recipe, name)]
    if both:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in both)
        raise RecipeError(
            f"--tsv-file-list names images and features already, and so does {flags}. Fix: leave"
            " one out"
        )
    if recipe.text == "student":
        raise RecipeError(
            "text = 'student' learns from raw pairs; --tsv-file-list holds none. Fix: name pairs"
            " with --images"
        )
    _refuse_selection(
        recipe,
        "--tsv-file-list takes feature files up whole. Fix: leave the selection out, or extract the"
        " images with it and name them with --images and --image-cache",
    )


def _adopted(raw: Rows, entry: str, files: Sequence[Path], kind: str, out: Path) -> FeatureCache:
    """Take up the feature files of ``raw``, one for each raw file, in the same order.

    ``entry`` names them in messages.
    """
    if len(files) != len(raw.shards):
        raise CacheError(
            f"{entry}: {len(files)} feature files for {len(raw.shards)} {kind} files; each"
            f" {kind} file needs its own. Fix: list them in the same order"
        )
    return adopt_tsv(
        files, [shard.name for shard in raw.shards], kind, out / "adopted" / f"{kind}s"
    )


def _belong(raw: Rows, files: list[Path], cache: FeatureCache) -> None:
    """Raise CacheError, naming both files, when features are not those of their raw file by count
    and keys.
    """
    for shard, file in zip(raw.shards, files, strict=True):
        try:
            align(Rows([shard]), cache)
        except CacheError as error:
            raise CacheError(
                f"{file} does not hold the features of {shard.path}: {error}"
            ) from error


def refuse_too_few_rows(sources: Sources, batch_size: int, processes: int) -> None:
    """Raise when the sources cannot fill a batch, or a batch cannot feed every process."""
    rows = len(sources)
    names = ", ".join(shard.name for shard in sources.raw.shards)
    if not rows:
        raise DataError(f"the sources hold no rows ({names}). Fix: check them")
    if rows < batch_size:
        raise DataError(
            f"the sources hold {rows:,} rows, fewer than a batch of {batch_size:,} ({names})."
            f" Fix: lower --batch-size to {rows:,} or less"
        )
    if batch_size < processes:
        raise RecipeError(
            f"--batch-size {batch_size}: {processes} processes share a batch, and each needs at"
            f" least one row. Fix: set --batch-size {processes} or more"
        )
