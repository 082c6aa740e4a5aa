"""CLIP-KD (CVPR 2024): students of open_clip as of 2023, image towers of timm 0.6.

Later versions of timm moved the downsampling of a Swin transformer from the end of a stage to the
beginning of the next, and of open_clip cannot put a projection behind MobileNetV3: its classifier
is the projection, with a bias of zero. Buffers of masks and indices are constants, which later
versions of timm do not save.

Source: winycg/CLIP-KD f3ae18b, src/open_clip/model.py and timm_model.py:89, names compared with
open_clip 3.3 and timm 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dimefm.models.weights.family import Family, Tensors, is_plain, without

STAGE = re.compile(r"(visual\.trunk\.layers\.)([0-9]+)(\.downsample\..+)")
CONSTANTS = r"visual\.trunk\.layers\..+\.(attn_mask|relative_position_index)|(text\.)?attn_mask"
MOBILENET = "visual.trunk.conv_head.weight"
PROJECTION = "visual.head.proj.weight"
CLASSIFIER = "visual.trunk.classifier"
TEXT_WIDTH = 384
STUDENTS = (
    "ViT-T-16",
    "MobileViT-S",
    "MobileViT-XXS",
    "Swin-T",
    "MobileNetV3-S",
    "EfficientNet-B0",
    "ResNet-18",
    "RN50",
    "ViT-B-16",
    "ViT-B-32",
    "RN101",
    "ViT-L-14",
)


def claims(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a whole CLIP has the width of the text tower of CLIP-KD's small students."""
    if not is_plain(tensors) or "positional_embedding" not in tensors:
        return False
    projection = tensors.get("text_projection")
    return projection is not None and list(projection.shape) == [TEXT_WIDTH, 512]


def remap(tensors: Tensors) -> Tensors:
    """Return the tensors of any student under the names of the installed timm."""
    kept = without(tensors, CONSTANTS)
    if any(name.startswith("visual.trunk.layers.") for name in kept):
        kept = swin(kept)
    if MOBILENET in kept and _is_mobilenet_v3(kept):
        projection = kept.pop(PROJECTION)
        kept[f"{CLASSIFIER}.weight"] = projection
        kept[f"{CLASSIFIER}.bias"] = torch.zeros(len(projection), dtype=projection.dtype)
    return kept


def swin(tensors: Tensors) -> Tensors:
    """Return a Swin transformer of the published layout with its downsampling one stage later.

    A state dict of the later layout, whose first stage has none, is returned as it is.
    """
    stages = {match[2] for name in tensors if (match := STAGE.fullmatch(name))}
    if "0" not in stages:
        return tensors
    result: Tensors = {}
    for name, tensor in tensors.items():
        match = STAGE.fullmatch(name)
        if match:
            name = f"{match[1]}{int(match[2]) + 1}{match[3]}"
        result[name] = tensor
    return result


def _is_mobilenet_v3(tensors: Tensors) -> bool:
    """Tell whether a network has a hidden layer between pooling and projection.

    EfficientNet has a layer of that name, too, but with a norm behind it and no bias.
    """
    return "visual.trunk.conv_head.bias" in tensors and PROJECTION in tensors


FAMILY = Family(
    name="clip-kd",
    title="CLIP-KD (CVPR 2024)",
    claims=claims,
    remap=remap,
    students=STUDENTS,
)
