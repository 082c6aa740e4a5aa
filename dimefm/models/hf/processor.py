"""How a folder of transformers prepares images, in open_clip's words.

transformers resizes, crops, scales and normalizes by the settings in ``preprocessor_config.json``
(since version 5 ``processor_config.json``). Its crop starts half a pixel earlier than open_clip's
where the rest is odd, and its default backend is off by one or two gray levels; this package's
decoders are those of open_clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimefm.errors import ModelError
from dimefm.models import config_check
from dimefm.models.hf.config import read_object

FILES = ("processor_config.json", "preprocessor_config.json")
FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CENTER = {"do_center_crop": True, "size": {"shortest_edge": 224}, "crop_size": 224}
SQUARE = {"do_center_crop": False, "size": 224}
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {**OPENAI, **CENTER, "resample": 3},
    "ChineseCLIPImageProcessor": {**OPENAI, **CENTER, "resample": 3},
    "SiglipImageProcessor": {**HALF, **SQUARE, "resample": 3},
    "ViTImageProcessor": {**HALF, **SQUARE, "resample": 2},
    "EfficientNetImageProcessor": {
        "do_center_crop": False,
        "size": 346,
        "crop_size": 289,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "include_top": True,
    },
}
"""What each class does where its settings say nothing; an int of ``size`` is the shortest side of
the first two classes, and a square of the others.
"""
SHORTEST = ("CLIPImageProcessor", "ChineseCLIPImageProcessor")
NAFLEX = "Siglip2ImageProcessor"
BYTE = 255


def preprocess_of(folder: Path) -> dict:
    """Return the preprocessing of a folder as a card has it.

    Raises ModelError, with the reason, when open_clip's words cannot express it.
    """
    path = next((folder / name for name in FILES if _has_images(folder / name)), None)
    if path is None:
        raise ModelError(
            f"{folder}: does not say how images are prepared: it has no {FILES[1]}. Fix: fetch the"
            " file, or name an open_clip_config.json with --preprocess FILE"
        )
    content = read_object(path)
    settings = content.get("image_processor", content)
    kind = _class_of(settings)
    if kind not in DEFAULTS:
        raise _inexpressible(path, _why_unknown(kind))
    known = {name: value for name, value in settings.items() if value is not None}
    return _translated({**DEFAULTS[kind], **known}, kind, path)


def _has_images(path: Path) -> bool:
    """Tell whether a file is there and says how images are prepared."""
    if not path.is_file():
        return False
    content = read_object(path)
    return "image_processor" in content or bool(_class_of(content)) or "image_mean" in content


def _class_of(settings: Any) -> str:
    """Return the class that prepares images, without the ending that names its backend."""
    if not isinstance(settings, Mapping):
        return ""
    for key in ("image_processor_type", "feature_extractor_type"):
        name = settings.get(key)
        if isinstance(name, str):
            name = name.removesuffix("Fast").removesuffix("Pil")
            return name.replace("FeatureExtractor", "ImageProcessor")
    return ""


def _why_unknown(kind: str) -> str:
    if kind == NAFLEX:
        return (
            "it keeps the aspect ratio of each image in patches of a number of their own, where"
            " this package's images are all of one size"
        )
    return f"'image_processor_type' is '{kind[:100]}', expected one of {', '.join(DEFAULTS)}"


def _inexpressible(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path}: its preprocessing is not one of this package: {reason}. Fix: name an"
        " open_clip_config.json with --preprocess FILE"
    )


def _translated(settings: Mapping[str, Any], kind: str, path: Path) -> dict:
    """Return settings of transformers in open_clip's words."""
    for step in ("do_resize", "do_rescale"):
        if not settings.get(step, True):
            raise _inexpressible(path, f"{step} is false")
    if settings.get("do_pad"):
        raise _inexpressible(path, "do_pad is true")
    resample = settings["resample"]
    if not isinstance(resample, int) or resample not in FILTERS:
        raise _inexpressible(path, f"resample is {resample!r}, expected 2 or 3")
    mean, std = _normalization(settings, path)
    preprocess = {
        **_geometry(settings, kind, path),
        "mode": "RGB",
        "mean": mean,
        "std": std,
        "interpolation": FILTERS[resample],
        "fill_color": 0,
    }
    return config_check.preprocessing(preprocess, str(path))


def _geometry(settings: Mapping[str, Any], kind: str, path: Path) -> dict:
    """Return the size of the images, and how they are resized to it."""
    size = _sides(settings["size"], kind in SHORTEST, path, "size")
    cropped = bool(settings.get("do_center_crop"))
    crop = _sides(settings["crop_size"], False, path, "crop_size") if cropped else size
    if len(size) == 1 and not cropped:
        raise _inexpressible(path, "images are resized by their shortest side and not cropped")
    height, width = crop
    geometry: dict[str, Any] = {
        "size": height if height == width else [height, width],
        "resize_mode": "shortest" if len(size) == 1 else "squash",
    }
    if len(size) == 1 and (size[0] != height or height != width):
        geometry["resize_to"] = size[0]
    if len(size) == 2 and size != crop:
        geometry["resize_to"] = size
    return geometry


def _sides(value: Any, is_shortest: bool, path: Path, name: str) -> list[int]:
    """Return the shortest side alone, or height and width."""
    sides: list[Any] = []
    if isinstance(value, int):
        sides = [value] if is_shortest else [value, value]
    elif isinstance(value, Mapping) and "height" in value and "width" in value:
        sides = [value["height"], value["width"]]
    elif isinstance(value, Mapping) and value.get("shortest_edge") is not None:
        if value.get("longest_edge") is not None:
            raise _inexpressible(path, f"'{name}' has a 'longest_edge'")
        sides = [value["shortest_edge"]]
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ModelError(
            f"{path}: '{name}' is {str(value)[:60]!r}, expected a height and a width, or a"
            " 'shortest_edge'. Fix: restore the file"
        )
    return sides


def _normalization(settings: Mapping[str, Any], path: Path) -> tuple[list[float], list[float]]:
    """Return mean and std of values from 0 to 1.

    transformers multiplies bytes by ``rescale_factor``, subtracts 1 for a ``rescale_offset``, and
    normalizes what comes out.
    """
    factor = settings.get("rescale_factor", 1 / BYTE)
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise ModelError(
            f"{path}: 'rescale_factor' is {str(factor)[:60]!r}, expected a positive number. Fix:"
            " restore the file"
        )
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    means = [0.0] * 3
    deviations = [1.0] * 3
    if settings.get("do_normalize", True):
        means = _per_channel(settings["image_mean"], path, "image_mean")
        deviations = _per_channel(settings["image_std"], path, "image_std")
    if settings.get("include_top"):  # EfficientNet divides once more
        top = _per_channel(settings["image_std"], path, "image_std")
        deviations = [std * again for std, again in zip(deviations, top, strict=True)]
    scale = BYTE * factor
    mean = [_rounded((offset + value) / scale) for value in means]
    std = [_rounded(value / scale) for value in deviations]
    return mean, std


def _per_channel(value: Any, path: Path, name: str) -> list[float]:
    numbers = [value] * 3 if isinstance(value, int | float) else value
    is_list = isinstance(numbers, list) and len(numbers) == 3
    if not is_list or not all(isinstance(number, int | float) for number in numbers):
        raise ModelError(
            f"{path}: '{name}' is {str(value)[:60]!r}, expected three numbers. Fix: restore the"
            " file"
        )
    return [float(number) for number in numbers]


def _rounded(number: float) -> float:
    """Return a number without the last digits, in which 255 times 1/255 differs from 1."""
    return float(f"{number:.12g}")
