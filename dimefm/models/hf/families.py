"""The model types of transformers that are encoders of images and of texts.

This module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

CONFIG = "config.json"
PREFIX = "hf:"


@dataclass(frozen=True)
class Family:
    """What is known of the models of one ``model_type``.

    ``model`` and ``config`` are classes of transformers, and ``image_parts`` are the parts of a
    model that only images go through. A text tower that ``masks_padding`` is told which tokens are
    padding, as it was in training; others read it, or never look behind the end of a text.
    ``context`` is the number of tokens of a text in training, where the config states more places.
    """

    model: str
    config: str
    image_parts: tuple[str, ...] = ("vision_model", "visual_projection")
    masks_padding: bool = False
    context: int | None = None


FAMILIES = {
    "align": Family("AlignModel", "AlignConfig", ("vision_model",), True, 64),
    "altclip": Family("AltCLIPModel", "AltCLIPConfig", masks_padding=True, context=77),
    "chinese_clip": Family("ChineseCLIPModel", "ChineseCLIPConfig", masks_padding=True, context=52),
    "clip": Family("CLIPModel", "CLIPConfig"),
    "metaclip_2": Family("MetaClip2Model", "MetaClip2Config"),
    "siglip": Family("SiglipModel", "SiglipConfig", ("vision_model",)),
    "siglip2": Family("Siglip2Model", "Siglip2Config", ("vision_model",), context=64),
    "vision-text-dual-encoder": Family(
        "VisionTextDualEncoderModel", "VisionTextDualEncoderConfig", masks_padding=True
    ),
}
"""By ``model_type``."""

VISION_TYPES = (
    "clip_vision_model",
    "deit",
    "dinov2",
    "siglip_vision_model",
    "timm_wrapper",
    "vit",
)
TEXT_TYPES = ("bert", "clip_text_model", "roberta", "xlm-roberta")
"""Types of the towers of a dual encoder, each of which states its own."""
