"""What the shapes of a state dict under open_clip's names tell of its model.

They tell all but the number of heads, which are 64 channels wide in OpenAI's models and in those
that follow them, and the activation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dimefm.errors import ModelError
from dimefm.models import pruned

CONVOLUTION = "visual.conv1.weight"
RESNET_BLOCK = re.compile(r"visual\.layer([1-4])\.([0-9]{1,3})\.")
RESNET_STRIDE = 32  # pixels of a side that become one place of the last feature map


def model_config(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the model config of a CLIP or of an image tower of open_clip's own classes.

    None when the image tower is of another kind. Raises ModelError for shapes that cannot be.
    """
    vision = _vision(tensors)
    if vision is None:
        return None
    config: dict[str, Any] = {"embed_dim": _embed_dim(tensors), "vision_cfg": vision}
    text = _text(tensors)
    if text is not None:
        config["text_cfg"] = text
    return config


def _vision(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if any(name.startswith(f"visual.{pruned.BLOCKS}") for name in tensors):
        return _vision_transformer(tensors)
    if any(RESNET_BLOCK.match(name) for name in tensors):
        return _resnet(tensors)
    return None


def _vision_transformer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stem = _tensor(tensors, CONVOLUTION, 4)
    patch_size = stem.shape[2]
    grid = _grid(tensors, "visual.positional_embedding")
    layers = _layers(tensors, "visual.")
    return {"image_size": grid * patch_size, "patch_size": patch_size, **layers}


def _resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = [0, 0, 0, 0]
    for name in tensors:
        match = RESNET_BLOCK.match(name)
        if match:
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    for stage in range(4):
        _tensor(tensors, f"visual.layer{stage + 1}.0.conv1.weight", 4)
    width = _tensor(tensors, "visual.layer1.0.conv1.weight", 4).shape[0]
    grid = _grid(tensors, "visual.attnpool.positional_embedding")
    return {"image_size": grid * RESNET_STRIDE, "layers": blocks, "width": width}


def _text(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    if f"{prefix}token_embedding.weight" not in tensors:
        return None
    embedding = _tensor(tensors, f"{prefix}token_embedding.weight", 2)
    positions = _tensor(tensors, f"{prefix}positional_embedding", 2)
    layers = _layers(tensors, prefix)
    if pruned.KEY not in layers:
        layers["heads"] = max(1, layers["width"] // pruned.HEAD_WIDTH)
    text = {"context_length": len(positions), "vocab_size": len(embedding), **layers}
    if f"{prefix}text_projection.bias" in tensors:
        text["proj_bias"] = True
    return text


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Return the keys that describe the blocks of a transformer."""
    description = pruned.describe(tensors, prefix)
    if not pruned.is_even(description):
        return {pruned.KEY: description}
    width = description["width"]
    hidden = description["layers"][0]["mlp"]
    keys: dict[str, Any] = {"width": width, "layers": len(description["layers"])}
    if hidden != 4 * width:
        keys["mlp_ratio"] = hidden / width
    return keys


def _embed_dim(tensors: Mapping[str, Tensor]) -> int:
    """Return the length of the embeddings, by the last projection of the image tower."""
    if any(name.startswith("visual.attnpool.") for name in tensors):
        return _tensor(tensors, "visual.attnpool.c_proj.weight", 2).shape[0]
    return _tensor(tensors, "visual.proj", 2).shape[1]


def _grid(tensors: Mapping[str, Tensor], name: str) -> int:
    """Return how many places a side of the feature map has: one position is of the class token."""
    positions = len(_tensor(tensors, name, 2)) - 1
    side = math.isqrt(max(0, positions))
    if side < 1 or side * side != positions:
        raise ModelError(
            f"'{name}' has {positions + 1} positions, expected one more than a square number. Fix:"
            " name the architecture with --student"
        )
    return side


def _tensor(tensors: Mapping[str, Tensor], name: str, axes: int) -> Tensor:
    """Return a tensor of a state dict; raise ModelError when it is not there or has other axes."""
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelError(f"'{name}' is missing. Fix: fetch the whole file; --student lists all")
    if tensor.ndim != axes:
        raise ModelError(
            f"'{name}' has the shape {list(tensor.shape)}, expected {axes} axes. Fix: fetch the"
            " file again"
        )
    return tensor
