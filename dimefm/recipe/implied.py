"""What settings imply: the crops of ``augment``, DIME-FM's own files, and DIME-FM's losses.

Settings come in layers: the defaults, the files of a recipe, the command line. A setting implies
others only where its own layer does not set them, so that what is said wins over what is implied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dimefm.errors import RecipeError
from dimefm.recipe.former import renamed
from dimefm.recipe.schema import KEYS
from dimefm.recipe.schema.student import DimeLosses

AUGMENTATIONS: dict[str, dict] = {
    "dime-fm": {
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (0.75, 4 / 3),
        "flip": 0.5,
        "resize": 256,
    },
    "clip-kd": {
        "crop_scale": (0.9, 1.0),
        "crop_ratio": (0.75, 4 / 3),
        "flip": 0.0,
        "resize": 0,
    },
    "moco-v2": {
        "crop_scale": (0.2, 1.0),
        "crop_ratio": (0.75, 4 / 3),
        "flip": 0.5,
        "resize": 0,
    },
}
"""What ``augment`` sets. Sources: DIME-FM, released Training/datasets/build.py:32-59; CLIP-KD,
released src/open_clip/transform.py:64-70; MoCo v2's as DeCLIP has it, released
prototype/data/imagenet_dataloader.py."""


def with_layer(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict:
    """Return the settings ``below`` with those of a ``layer`` and what the layer implies."""
    layer = renamed(layer)
    implied = _crops(layer) | _dime_fm_files(below, layer)
    return {**below, **implied, **layer}


def _crops(layer: Mapping[str, Any]) -> dict:
    """Return the crops of the layer's ``augment``."""
    augment = layer.get("augment")
    return AUGMENTATIONS.get(augment, {}) if isinstance(augment, str) else {}


def _dime_fm_files(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict:
    """Return what DIME-FM's own files imply: they take the place of other sources and caches, and
    the student sees free crops, as released, where it would replay those of a cache.
    """
    if not layer.get("tsv_file_list"):
        return {}
    implied: dict = {"images": (), "image_cache": (), "text_cache": ()}
    if below.get("crops", KEYS["crops"].default) == "replay":
        implied["crops"] = "free"
    return implied


def with_losses(settings: Mapping[str, Any]) -> dict:
    """Return settings whose ``losses`` are those that DIME-FM's options ask for, which are gone.

    Without any losses the student of a teacher learns by VL. Raises RecipeError for an option that
    would do nothing.
    """
    given = {name: settings[name] for name in DimeLosses.model_fields if name in settings}
    others = {name: value for name, value in settings.items() if name not in given}
    losses = others.get("losses")
    if losses is not None and not isinstance(losses, dict):
        return others  # of a wrong type, which is refused as such

    options = DimeLosses(**given)
    wanted = {
        "vl": options.use_vl_loss,
        "pvl": options.use_pvl_loss,
        "udist": options.use_udist_loss,
    }
    if options.use_vl_loss is None:
        wanted["vl"] = losses is None and _has_teacher(others)

    chosen: dict = dict(losses or {})
    if options.use_vl_loss is False:
        chosen.pop("dime.vl", None)
    for term, is_wanted in wanted.items():
        _apply(term, options, bool(is_wanted), chosen)
    return {**others, "losses": chosen}


def _has_teacher(settings: Mapping[str, Any]) -> bool:
    return settings.get("text") != "student" or bool(settings.get("image_cache"))


def _apply(term: str, options: DimeLosses, wanted: bool, losses: dict) -> None:
    """Put the loss of one ``term`` into ``losses``, if it is ``wanted`` or is among them."""
    name = f"dime.{term}"
    weight, temperature = f"w_{term}", f"t_{term}"
    given = options.model_fields_set
    if wanted and name not in losses:
        losses[name] = {"weight": getattr(options, weight)}
    if name not in losses:
        for option in (weight, temperature):
            if option in given:
                flag = "--" + option.replace("_", "-")
                raise RecipeError(
                    f"{flag} does nothing without --use-{term}-loss. Fix: add that, or remove"
                    f" {flag}"
                )
        return
    if not isinstance(losses[name], dict):
        return  # of a wrong type, which is refused as such

    settings = dict(losses[name])
    if weight in given:
        settings["weight"] = getattr(options, weight)
    if temperature in given:
        settings["temperature"] = getattr(options, temperature)
    losses[name] = settings
    if wanted and settings.get("weight") == 0:
        raise RecipeError(
            f"--use-{term}-loss with weight 0 would do nothing (DIME-FM's default for it). Fix: set"
            f" --w-{term} above 0"
        )
