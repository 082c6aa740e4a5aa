"""What a run learns from: raw images and cached features, opened and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.cache import EncoderCard, FeatureCache
from dimefm.cache.adopt import adopt_tsv
from dimefm.cache.manifest import FILE as MANIFEST
from dimefm.cache.manifest import differences
from dimefm.data import Columns, Rows, open_rows
from dimefm.data.align import Aligned, align
from dimefm.data.sources import expand, shard_names
from dimefm.errors import CacheError, RecipeError
from dimefm.recipe import Recipe


@dataclass(frozen=True)
class Sources:
    """Opened sources of a run. ``aligned`` and the caches are None when a CLIP is trained from pairs."""

    images: Rows
    aligned: Aligned | None
    image_cache: FeatureCache | None
    text_cache: FeatureCache | None

    def __len__(self) -> int:
        return len(self.images) if self.aligned is None else len(self.aligned)

    @property
    def teacher(self) -> EncoderCard | None:
        """Identity of the teacher whose features these are."""
        return None if self.image_cache is None else self.image_cache.manifest.encoder

    def locate(self, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (raw rows, feature rows) of usable row numbers."""
        return (usable, usable) if self.aligned is None else self.aligned.locate(usable)


def open_sources(recipe: Recipe, out: Path) -> Sources:
    """Open everything that ``recipe`` names; adopted TSV features go into ``out``.

    Raises RecipeError when something is not named, CacheError when features do not belong to the images or to each
    other, DataError when a source cannot be read.
    """
    if recipe.tsv_file_list:
        return _dime_fm_form(recipe, out)
    if not recipe.images:
        raise RecipeError("no images are given; name them with --images (or 'images' in the recipe)")
    kind = "pair" if recipe.text == "student" else "image"
    columns = Columns(
        image=recipe.image_column,
        text=recipe.text_column,
        key=recipe.key_column,
        separator=recipe.separator,
        root=Path(recipe.dataroot) if recipe.dataroot else None,
    )
    images = open_rows(recipe.images, kind, dataroot=recipe.dataroot, input_format=recipe.input_format, columns=columns)
    if recipe.text == "student":
        if recipe.image_cache or recipe.text_cache:
            raise RecipeError(
                "text = 'student' learns from raw pairs and uses no cache; leave --image-cache and --text-cache out"
            )
        return Sources(images, None, None, None)
    return _checked(images, _open_cache(recipe, "image"), _open_cache(recipe, "text"))


def _open_cache(recipe: Recipe, kind: str) -> FeatureCache:
    """Open the cache that the recipe names for ``kind``; the folder around ``images/`` and ``texts/`` gets a hint."""
    root = getattr(recipe, f"{kind}_cache")
    if root is None:
        raise RecipeError(
            f"--{kind}-cache is not given; the student learns from cached teacher features: make them with extract-features"
        )
    inner = Path(root) / f"{kind}s"
    if not (Path(root) / MANIFEST).exists() and (inner / MANIFEST).exists():
        raise CacheError(f"--{kind}-cache {root}: no {MANIFEST}, so no cache; did you mean {inner}?")
    return FeatureCache(root)


def _dime_fm_form(recipe: Recipe, out: Path) -> Sources:
    """Open DIME-FM's own files: image, image-feature, text and text-feature TSVs or lists, in this order."""
    _refuse_two_forms(recipe)
    images = open_rows([recipe.tsv_file_list[0]], "image", dataroot=recipe.dataroot, input_format="tsv")
    image_cache = _adopted(images, recipe.tsv_file_list[1], "image", recipe, out)
    text_features = recipe.tsv_file_list[-1]
    if len(recipe.tsv_file_list) == 3:
        files = expand(text_features, recipe.dataroot)
        names = shard_names(files, Path(recipe.dataroot) if recipe.dataroot else None)
        text_cache = adopt_tsv(files, names, "text", out / "adopted" / "texts")
    else:
        texts = open_rows([recipe.tsv_file_list[2]], "text", dataroot=recipe.dataroot, input_format="tsv")
        text_cache = _adopted(texts, text_features, "text", recipe, out)
        _belong(texts, expand(text_features, recipe.dataroot), text_cache)
    return _checked(images, image_cache, text_cache)


def _refuse_two_forms(recipe: Recipe) -> None:
    if len(recipe.tsv_file_list) not in (3, 4):
        raise RecipeError(
            f"--tsv-file-list has {len(recipe.tsv_file_list)} entries; expected image, image_feat, text, text_feat in this "
            "order (text only checks text_feat and may be left out)"
        )
    both = [name for name in ("images", "image_cache", "text_cache") if getattr(recipe, name)]
    if both:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in both)
        raise RecipeError(f"--tsv-file-list names images and features already, and so does {flags}; leave one out")
    if recipe.text == "student":
        raise RecipeError("text = 'student' learns from raw pairs; --tsv-file-list holds none: name pairs with --images")


def _adopted(raw: Rows, features: str, kind: str, recipe: Recipe, out: Path) -> FeatureCache:
    """Take up the feature files of ``raw``, one for each raw file, in the same order."""
    files = expand(features, recipe.dataroot)
    if len(files) != len(raw.shards):
        raise CacheError(
            f"{features}: {len(files)} feature files for {len(raw.shards)} {kind} files; each {kind} file needs its own, "
            "in the same order"
        )
    return adopt_tsv(files, [shard.name for shard in raw.shards], kind, out / "adopted" / f"{kind}s")


def _belong(raw: Rows, files: list[Path], cache: FeatureCache) -> None:
    """Raise CacheError, naming both files, when features are not those of their raw file by count and keys."""
    for shard, file in zip(raw.shards, files, strict=True):
        try:
            align(Rows([shard]), cache)
        except CacheError as error:
            raise CacheError(f"{file} does not hold the features of {shard.path}: {error}") from error


def _checked(images: Rows, image_cache: FeatureCache, text_cache: FeatureCache) -> Sources:
    for cache, kind in ((image_cache, "image"), (text_cache, "text")):
        if cache.manifest.kind != kind:
            raise CacheError(
                f"{cache.root}: holds {cache.manifest.kind} features, {kind} features are needed; swap the folders"
            )
        if not len(cache):
            raise CacheError(f"{cache.root}: holds no rows; every row was quarantined, see quarantine.jsonl there")
    different = differences(image_cache.manifest.encoder.identity(), text_cache.manifest.encoder.identity())
    if different:
        raise CacheError(
            f"{image_cache.root} and {text_cache.root} were made by different teachers ({'; '.join(different)}); "
            "extract one of them again with the other's teacher"
        )
    return Sources(images, align(images, image_cache), image_cache, text_cache)
