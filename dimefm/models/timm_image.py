"""Image models of timm as students: what open_clip must know of each to build it."""

from __future__ import annotations

import logging
from typing import Any

import timm
import torch

from dimefm.errors import ModelError, did_you_mean
from dimefm.runtime.text import first_few

PREFIX = "timm/"
FEW = 4  # tags in a message
IMAGE_SIZE = 224  # by default, as open_clip


def vision_config(name: str) -> dict:
    """Return open_clip's ``vision_cfg`` of a timm model, with a linear projection behind it.

    Some networks have a hidden layer between pooling and classifier (MobileNetV3, GhostNet, HGNet
    and others). There the classifier itself becomes the projection: open_clip's own projection
    would expect the width before that layer. A network that cannot take 224 pixels has its own
    image size. Raises ModelError when timm does not know the model.
    """
    if not timm.is_model(name):
        raise ModelError(f"unknown timm model '{name}': {did_you_mean(name, timm.list_models())}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # timm knows the network, not the tag
        network, _, tag = name.partition(".")
        tags = timm.list_pretrained(f"{network}.*")
        raise ModelError(
            f"timm/{name}: '{tag}' is no tag of {network}; expected one of"
            f" {first_few(tags, FEW) or 'none'}. Fix: correct the tag, or remove it"
        ) from error
    config: dict[str, Any] = {"timm_model_name": name, "timm_pool": ""}
    if _has_hidden_layer(name):
        config.update(timm_pool="avg", timm_proj="")
    size = _smallest_size(name)
    if size > IMAGE_SIZE:
        config["image_size"] = size
    return config


def pretrained_tag(name: str) -> str:
    """Return the tag of pretrained weights that a student's name has, "" without one.

    ``timm/resnet18.a1_in1k`` names the weights ``a1_in1k``.
    """
    if not name.startswith(PREFIX):
        return ""
    return name.partition(".")[2]


def _has_hidden_layer(name: str) -> bool:
    with torch.device("meta"):  # shapes without numbers
        try:
            network = timm.create_model(name)
        except Exception:  # timm raises whatever a network's code raises; it says so when built
            logging.getLogger(__name__).debug("timm/%s cannot be built", name, exc_info=True)
            return False
    hidden = getattr(network, "head_hidden_size", None)
    return hidden is not None and hidden != network.num_features


def _smallest_size(name: str) -> int:
    """Return the smallest image size, in pixels, that timm states for a network; 0 for none."""
    settings = timm.get_pretrained_cfg(name)
    if settings is None or settings.min_input_size is None:
        return 0
    return max(settings.min_input_size[1:])
