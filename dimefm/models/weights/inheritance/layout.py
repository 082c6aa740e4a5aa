"""Which axes of a transformer's weights belong to its channels, heads and hidden units.

Both gating and cutting go by this one table. Written against open_clip_torch 3.x and
:mod:`dimefm.models.pruned`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from open_clip.model import CLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models.pruned import HEAD_WIDTH, PrunedAttention, PrunedBlock
from dimefm.models.weights.inheritance.gates import Masks, Structure

Group = Literal["hidden", "heads", "qkv", "mlp"]
TowerName = str  # "image" or "text"
CONFIG_KEYS: dict[str, str] = {"image": "vision_cfg", "text": "text_cfg"}
OUTSIDE = re.compile(r"visual\..*|logit_scale|logit_bias")
"""Names of a CLIP's weights that are no part of its text tower."""


class Axis(NamedTuple):
    """An axis of a weight, the ``group`` that its places belong to, and whether gates scale it."""

    number: int
    group: Group
    is_scaled: bool


BLOCK = r"transformer\.resblocks\.(?P<layer>[0-9]+)\."
AXES: tuple[tuple[re.Pattern, tuple[Axis, ...]], ...] = tuple(
    (re.compile(pattern), axes)
    for pattern, axes in (
        (r"conv1\.weight|class_embedding", (Axis(0, "hidden", True),)),
        (r"positional_embedding|token_embedding\.weight", (Axis(1, "hidden", True),)),
        (r"(ln_pre|ln_post|ln_final)\.(weight|bias)", (Axis(0, "hidden", False),)),
        (r"proj|text_projection", (Axis(0, "hidden", False),)),
        (r"text_projection\.weight", (Axis(1, "hidden", False),)),
        (r"text_projection\.bias", ()),
        (BLOCK + r"ln_[12]\.(weight|bias)", (Axis(0, "hidden", False),)),
        (BLOCK + r"attn\.in_proj_weight", (Axis(0, "qkv", False), Axis(1, "hidden", False))),
        (BLOCK + r"attn\.in_proj_bias", (Axis(0, "qkv", False),)),
        (BLOCK + r"attn\.out_proj\.weight", (Axis(0, "hidden", True), Axis(1, "heads", True))),
        (BLOCK + r"attn\.out_proj\.bias", (Axis(0, "hidden", True),)),
        (BLOCK + r"mlp\.c_fc\.weight", (Axis(0, "mlp", False), Axis(1, "hidden", False))),
        (BLOCK + r"mlp\.c_fc\.bias", (Axis(0, "mlp", False),)),
        (BLOCK + r"mlp\.c_proj\.weight", (Axis(0, "hidden", True), Axis(1, "mlp", True))),
        (BLOCK + r"mlp\.c_proj\.bias", (Axis(0, "hidden", True),)),
    )
)
"""The axes of each weight, by the pattern of its name within its tower.

Gates scale what writes into the residual stream. What reads from it, as norms and the last
projection, is not scaled: it only loses the closed channels.
"""


class Place(NamedTuple):
    """Where a weight is: its layer, None outside the layers, and its axes."""

    layer: int | None
    axes: tuple[Axis, ...]


def place_of(name: str) -> Place | None:
    """Return where a weight of a tower is, None for a name that no transformer here has."""
    for pattern, axes in AXES:
        match = pattern.fullmatch(name)
        if match is not None:
            layer = match.groupdict().get("layer")
            return Place(None if layer is None else int(layer), axes)
    return None


@dataclass(frozen=True)
class Tower:
    """A transformer of a model: its ``module``, and the ``prefix`` of its weights' names."""

    name: TowerName
    module: nn.Module
    prefix: str

    @property
    def config_key(self) -> str:
        """The key of the tower in a model config."""
        return CONFIG_KEYS[self.name]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name within the tower, weight) of all weights."""
        for name, weight in self.module.named_parameters():
            if not (self.prefix == "" and OUTSIDE.fullmatch(name)):
                yield name, weight

    def norms(self) -> Iterator[tuple[str, nn.LayerNorm]]:
        """Yield (name within the tower, norm) of all norms."""
        for name, module in self.module.named_modules():
            is_of_tower = not (self.prefix == "" and OUTSIDE.fullmatch(name))
            if is_of_tower and isinstance(module, nn.LayerNorm):
                yield name, module


def tower_of(model: nn.Module, name: TowerName) -> Tower:
    """Return the image or text tower of a model; raise ModelError when gates do not fit it."""
    tower = _image_tower(model) if name == "image" else _text_tower(model)
    for number, block in enumerate(tower.module.transformer.resblocks):
        if not _is_plain(block):
            raise _unsupported(f"layer {number} of the {name} tower, {type(block).__name__},")
    for weight_name, _ in tower.weights():
        if place_of(weight_name) is None:
            raise _unsupported(f"the {name} tower's '{weight_name}'")
    return tower


def _image_tower(model: nn.Module) -> Tower:
    visual = getattr(model, "visual", None)
    if not isinstance(visual, VisionTransformer):
        kind = type(visual).__name__
        if isinstance(visual, TimmModel):
            kind = f"timm's {type(visual.trunk).__name__}"
        raise _unsupported(f"the image tower, {kind},")
    return Tower("image", visual, "visual.")


def _text_tower(model: nn.Module) -> Tower:
    if isinstance(model, CLIP):
        return Tower("text", model, "")
    text = getattr(model, "text", None)
    if not isinstance(text, TextTransformer):
        raise _unsupported(f"the text tower, {type(text).__name__},")
    return Tower("text", text, "text.")


def _is_plain(block: nn.Module) -> bool:
    """Tell whether a layer is open_clip's usual one, or one that was cut."""
    if isinstance(block, PrunedBlock):
        return True
    if type(block) is not ResidualAttentionBlock:
        return False
    return isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity)


def _unsupported(what: str) -> ModelError:
    return ModelError(
        f"{what} cannot be pruned: gates are for the plain transformers of open_clip, not for"
        " ResNets and towers of timm or Hugging Face. Fix: choose a ViT of open_clip, or remove"
        " 'prune'"
    )


def structure_of(tower: Tower) -> Structure:
    """Return the sizes of a tower."""
    heads = []
    mlp = []
    head_width = HEAD_WIDTH
    width = 0
    for block in tower.module.transformer.resblocks:
        count = _heads(block.attn)
        heads.append(count)
        if count:
            head_width = len(block.attn.in_proj_bias) // 3 // count
        has_units = isinstance(block.mlp, nn.Sequential)
        mlp.append(block.mlp.c_fc.out_features if has_units else 0)
        width = len(block.mlp.c_proj.bias)
    return Structure(width, head_width, tuple(heads), tuple(mlp))


def _heads(attention: nn.Module) -> int:
    if isinstance(attention, nn.MultiheadAttention):
        return attention.num_heads
    return attention.heads if isinstance(attention, PrunedAttention) else 0


def described(structure: Structure) -> dict:
    """Return the value of ``pruned`` in the config of a tower of this structure."""
    layers = []
    for heads, mlp in zip(structure.heads, structure.mlp, strict=True):
        layers.append({"heads": heads, "mlp": mlp})
    return {"width": structure.width, "head_width": structure.head_width, "layers": layers}


def structure_from_config(config: Mapping, name: TowerName) -> Structure:
    """Return the sizes that the config of a cut tower describes."""
    pruned = config[CONFIG_KEYS[name]]["pruned"]
    heads = tuple(layer["heads"] for layer in pruned["layers"])
    mlp = tuple(layer["mlp"] for layer in pruned["layers"])
    return Structure(pruned["width"], pruned.get("head_width", HEAD_WIDTH), heads, mlp)


def gated_weight(weight: Tensor, place: Place, masks: Masks, head_width: int) -> Tensor:
    """Return a weight times its gates."""
    for axis in place.axes:
        if not axis.is_scaled:
            continue
        factors = _factors(axis.group, place.layer, masks, head_width)
        shape = [1] * weight.ndim
        shape[axis.number] = len(factors)
        weight = weight * factors.view(shape)
    return weight


def _factors(group: Group, layer: int | None, masks: Masks, head_width: int) -> Tensor:
    """Return the gates of the places of an axis."""
    if group == "hidden":
        return masks.hidden
    assert layer is not None
    if group == "heads":
        return masks.heads[layer].repeat_interleave(head_width)
    return masks.mlp[layer]


def cut_weight(weight: Tensor, place: Place, masks: Masks, head_width: int) -> Tensor:
    """Return a weight without the places whose gates are closed."""
    for axis in place.axes:
        index = _kept_places(axis.group, place.layer, masks, head_width)
        weight = weight.index_select(axis.number, index)
    return weight


def _kept_places(group: Group, layer: int | None, masks: Masks, head_width: int) -> Tensor:
    """Return the places of an axis whose gates are open."""
    if group != "qkv":
        return _factors(group, layer, masks, head_width).nonzero().flatten()
    assert layer is not None
    places = masks.heads[layer].repeat_interleave(head_width)
    return torch.cat([places] * 3).nonzero().flatten()


def kept_structure(structure: Structure, masks: Masks) -> Structure:
    """Return the sizes of what is left of a tower."""
    heads = [int((gates > 0).sum()) for gates in masks.heads]
    mlp = [int((gates > 0).sum()) for gates in masks.mlp]
    width = int((masks.hidden > 0).sum())
    return Structure(width, structure.head_width, tuple(heads), tuple(mlp))


def is_left(name: str, place: Place, left: Structure) -> bool:
    """Tell whether a weight is left in a cut tower.

    A layer without heads keeps the bias of its attention, one without hidden units that of its
    perceptron.
    """
    if place.layer is None:
        return True
    part = name.split(".")[3]
    if part in ("attn", "ln_1") and not left.heads[place.layer]:
        return name.endswith("attn.out_proj.bias")
    if part in ("mlp", "ln_2") and not left.mlp[place.layer]:
        return name.endswith("mlp.c_proj.bias")
    return True


def with_layers(config: Mapping, layers: Mapping[str, dict]) -> dict:
    """Return a model config whose towers have other layers.

    ``layers`` has the value of ``pruned`` by the key of the tower in the config.
    """
    result = dict(config)
    for key, description in layers.items():
        kept = {}
        for setting, value in config[key].items():
            if setting not in REPLACED:
                kept[setting] = value
        result[key] = {**kept, "pruned": description}
    return result


def layers_of(config: Mapping) -> dict[str, dict]:
    """Return the value of ``pruned`` of each tower of a config that has one."""
    layers = {}
    for key in CONFIG_KEYS.values():
        tower = config.get(key)
        if isinstance(tower, Mapping) and tower.get("pruned"):
            layers[key] = tower["pruned"]
    return layers


REPLACED = (
    "width",
    "layers",
    "mlp_ratio",
    "heads",
    "head_width",
    "pruned",
)
"""Keys of a tower's config that ``pruned`` stands for."""
