"""What a run learns from: raw images, cached features and captions, opened and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.cache import EncoderCard, FeatureCache
from dimefm.cache.adopt import adopt_tsv
from dimefm.cache.manifest import differences
from dimefm.data import Row, Rows, Shard, open_rows
from dimefm.data.align import Aligned, align
from dimefm.data.order import seed_of
from dimefm.data.sources import expand
from dimefm.errors import CacheError, RecipeError
from dimefm.eval.benchmark import for_folder, prompts
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
    images = open_rows(recipe.images, kind, dataroot=recipe.dataroot, input_format=recipe.input_format)
    if recipe.text == "student":
        if recipe.image_cache or recipe.text_cache:
            raise RecipeError(
                "text = 'student' learns from raw pairs and uses no cache; leave --image-cache and --text-cache out"
            )
        return Sources(images, None, None, None)
    for name in ("image_cache", "text_cache"):
        if getattr(recipe, name) is None:
            raise RecipeError(
                f"--{name.replace('_', '-')} is not given; the student learns from cached teacher features: "
                "make them with extract-features"
            )
    return _checked(images, FeatureCache(recipe.image_cache), FeatureCache(recipe.text_cache))


def _dime_fm_form(recipe: Recipe, out: Path) -> Sources:
    """Open DIME-FM's own files: image, image-feature, text and text-feature TSVs or lists, in this order."""
    if len(recipe.tsv_file_list) not in (3, 4):
        raise RecipeError(
            f"--tsv-file-list has {len(recipe.tsv_file_list)} entries; expected image, image_feat, text, text_feat in this "
            "order (text itself is not read and may be left out)"
        )
    raw, image_features, text_features = (recipe.tsv_file_list[i] for i in (0, 1, -1))
    images = open_rows([raw], "image", dataroot=recipe.dataroot, input_format="tsv")
    feature_files = expand(image_features, recipe.dataroot)
    text_files = expand(text_features, recipe.dataroot)
    if len(feature_files) != len(images.shards):
        raise CacheError(
            f"{image_features}: {len(feature_files)} feature files for {len(images.shards)} image files; "
            "each image file needs its own, in the same order"
        )
    names = [shard.name for shard in images.shards]
    image_cache = adopt_tsv(feature_files, names, "image", out / "adopted" / "images")
    text_cache = adopt_tsv(text_files, [path.name for path in text_files], "text", out / "adopted" / "texts")
    return _checked(images, image_cache, text_cache)


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


class Captions:
    """Chooses the sentence of a pair: one of the row's own, or a class prompt made from its label."""

    def __init__(self, rows: Rows, source: str):
        """``source`` is ``"text"``, or ``"label"`` to make prompts for rows without sentences of their own.

        Raises DataError when a shard has labels only and no class names belong to its folder.
        """
        self._rows = rows
        self._prompts: dict[Path, dict] = {}
        if source == "label":
            for shard in rows.shards:
                folder = _folder(shard)
                if folder not in self._prompts and len(shard) and not shard[0].texts:
                    self._prompts[folder] = _prompts_of(folder)

    def __call__(self, number: int, row: Row, seed: int) -> str | None:
        """Return the sentence that ``seed`` selects for raw row ``number``, or None when it has none."""
        found = row.texts
        if not found:
            folder = _folder(self._rows.shards[self._rows.locate(number)[0]])
            found = self._prompts.get(folder, {}).get(row.label, ())
        return found[seed_of(seed, "caption") % len(found)] if found else None


def _folder(shard: Shard) -> Path:
    return shard.path if shard.path.is_dir() else shard.path.parent


def _prompts_of(folder: Path) -> dict[int | str, list[str]]:
    benchmark = for_folder(folder)
    by_number = prompts(benchmark)
    by_name: dict = dict(zip(benchmark.classes, by_number, strict=True))
    return {**dict(enumerate(by_number)), **by_name}
