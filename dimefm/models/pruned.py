"""Transformers whose layers differ in heads and hidden units, as pruning leaves them.

The key ``pruned`` in ``vision_cfg`` or ``text_cfg`` of a model config describes the blocks of such
a tower; all other keys mean what they mean to open_clip::

    "vision_cfg": {
        "image_size": 224,
        "patch_size": 32,
        "pruned": {
            "width": 700,
            "head_width": 64,
            "layers": [{"heads": 11, "mlp": 2900}, {"heads": 0, "mlp": 2517}, ...]
        }
    }

``width`` is the length of the residual stream, ``heads`` times ``head_width`` the width of a
layer's attention, and ``mlp`` the number of its hidden units. ``pruned`` stands for open_clip's
``width``, ``layers``, ``heads`` or ``head_width``, and ``mlp_ratio``, which cannot say this. So
open_clip itself does not load such a config; :mod:`dimefm.models.open_clip` does, by :func:`plain`
and :func:`install`.

The weights have open_clip's names (``transformer.resblocks.3.attn.in_proj_weight``), so the weights
of a cut tower are slices of the whole tower's. A layer without heads has of its attention only
``attn.out_proj.bias``, and no ``ln_1``: a gated attention whose heads are all closed still adds
that bias. Likewise a layer without hidden units has only ``mlp.c_proj.bias``, and no ``ln_2``.

Source: TinyCLIP (ICCV 2023), released src/open_clip/model.py:139-205 and 317-339. Deviation: the
released cut drops the bias of an attention without heads, and so computes other features.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import ModelError

KEY = "pruned"
TOWERS = ("vision_cfg", "text_cfg")
BLOCKS = "transformer.resblocks."
BLOCK_NAME = re.compile(r"([0-9]{1,3})\.(.+)")
HEAD_WIDTH = 64  # of OpenAI's and open_clip's transformers
PARTS = {
    "attn.out_proj.weight": ("attn.in_proj", "ln_1."),
    "mlp.c_fc.weight": ("mlp.c_fc", "mlp.c_proj.weight", "ln_2."),
}
"""What a layer has besides the tensor that tells the size of its attention or perceptron."""


class PrunedAttention(nn.Module):
    """Multi-head attention inside a residual stream that is wider or narrower than its heads."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        self.out_proj = nn.Linear(inner, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return the attention of x [B, L, width] to itself, [B, L, width].

        ``attn_mask`` [L, L] is added to the scores.
        """
        batch, length, _ = x.shape
        rows = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        by_head = rows.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = by_head.unbind(0)
        if attn_mask is not None:
            attn_mask = attn_mask.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Bias(nn.Module):
    """What is left of a linear layer without inputs."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))


class PrunedBlock(nn.Module):
    """A residual block of attention and a perceptron, each of its own width.

    ``norm`` and ``activation`` are modules whose copies the block uses.
    """

    def __init__(
        self,
        layer: Mapping[str, int],
        head_width: int,
        norm: nn.Module,
        activation: nn.Module,
        width: int,
    ):
        super().__init__()
        heads = layer["heads"]
        hidden = layer["mlp"]
        if heads:
            self.ln_1 = copy.deepcopy(norm)
            self.attn: nn.Module = PrunedAttention(width, heads, head_width)
        else:
            self.attn = nn.Module()
            self.attn.out_proj = Bias(width)
        if hidden:
            self.ln_2 = copy.deepcopy(norm)
            parts = OrderedDict(
                c_fc=nn.Linear(width, hidden),
                gelu=copy.deepcopy(activation),
                c_proj=nn.Linear(hidden, width),
            )
            self.mlp: nn.Module = nn.Sequential(parts)
        else:
            self.mlp = nn.Module()
            self.mlp.c_proj = Bias(width)

    def get_weight_dtype(self) -> torch.dtype:
        """Return the dtype of the weights; open_clip's transformer asks its first block."""
        return self.mlp.c_proj.bias.dtype

    def forward(
        self,
        q_x: Tensor,
        k_x: None = None,
        v_x: None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the block's output [B, L, width] for ``q_x`` of the same shape.

        The arguments are those of open_clip's block, which passes them by place.
        """
        if isinstance(self.attn, PrunedAttention):
            x = q_x + self.attn(self.ln_1(q_x), attn_mask)
        else:
            x = q_x + self.attn.out_proj.bias
        if isinstance(self.mlp, nn.Sequential):
            return x + self.mlp(self.ln_2(x))
        return x + self.mlp.c_proj.bias


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that open_clip builds, with one ordinary layer in place of a pruned tower's.

    :func:`install` then gives the model its own layers. A config without ``pruned`` is returned as
    it is.
    """
    result = dict(config)
    for name in TOWERS:
        description = _description(config, name)
        if description is None:
            continue
        width = description["width"]
        tower = {key: value for key, value in config[name].items() if key != KEY}
        tower.update(width=width, layers=1, mlp_ratio=1.0)
        if name == "vision_cfg":
            tower["head_width"] = width
        else:
            tower["heads"] = 1
        result[name] = tower
    return result


def install(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """Give a model, image tower or text tower built from :func:`plain` its own layers; return it.

    Their weights are random.
    """
    visual = getattr(model, "visual", model)
    text = getattr(model, "text", model)
    for name, tower in zip(TOWERS, (visual, text), strict=True):
        description = _description(config, name)
        if description is not None:
            _replace_blocks(tower.transformer, description)
    return model


def _replace_blocks(transformer: nn.Module, description: Mapping[str, Any]) -> None:
    """Put the blocks of a description into a transformer of open_clip with one block."""
    example = transformer.resblocks[0]
    width = description["width"]
    head_width = description.get("head_width", HEAD_WIDTH)
    blocks = []
    for layer in description["layers"]:
        block = PrunedBlock(layer, head_width, example.ln_1, example.mlp.gelu, width)
        blocks.append(block)
    transformer.resblocks = nn.ModuleList(blocks)
    transformer.layers = len(blocks)


def describe(
    tensors: Mapping[str, Tensor], prefix: str = "", head_width: int = HEAD_WIDTH
) -> dict[str, Any]:
    """Return the value of ``pruned`` for the blocks of a state dict.

    ``prefix`` stands before ``transformer.resblocks``: ``visual.`` or ``text.`` or nothing. Raises
    ModelError when there are no blocks, a layer is missing, or an attention is not a multiple of
    ``head_width`` wide.
    """
    start = f"{prefix}{BLOCKS}"
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = BLOCK_NAME.fullmatch(name.removeprefix(start))
        if name.startswith(start) and match:
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor
    if not blocks or sorted(blocks) != list(range(len(blocks))):
        raise ModelError(
            f"'{start}': layers {sorted(blocks)[:20]}, expected 0, 1, 2 and so on. Fix: fetch the"
            " weights again"
        )
    layers = []
    for number in range(len(blocks)):
        layers.append(_layer(blocks[number], f"{start}{number}", head_width))
    width = _side(blocks[0], "mlp.c_proj.bias", 0, f"{start}0")
    return {"width": width, "head_width": head_width, "layers": layers}


def _layer(block: Mapping[str, Tensor], name: str, head_width: int) -> dict[str, int]:
    """Return heads and hidden units of one block."""
    inner = _side(block, "attn.out_proj.weight", 1, name)
    if inner % head_width:
        raise ModelError(
            f"'{name}.attn.out_proj.weight' has {inner} columns, expected a multiple of the head"
            f" width {head_width}. Fix: name another --student"
        )
    hidden = _side(block, "mlp.c_fc.weight", 0, name)
    return {"heads": inner // head_width, "mlp": hidden}


def _side(block: Mapping[str, Tensor], name: str, axis: int, where: str) -> int:
    """Return the length of one axis of a block's tensor, 0 when the block has no such tensor."""
    tensor = block.get(name)
    if tensor is None:
        rest = [other for other in block if other.startswith(PARTS.get(name, ()))]
        if rest:
            raise ModelError(
                f"'{where}.{name}' is missing, but '{where}.{rest[0]}' is there. Fix: fetch the"
                " whole checkpoint"
            )
        return 0
    if tensor.ndim <= axis:
        raise ModelError(
            f"'{where}.{name}' has the shape {list(tensor.shape)}, expected at least {axis + 1}"
            " axes. Fix: fetch the weights again"
        )
    return tensor.shape[axis]


def is_even(description: Mapping[str, Any]) -> bool:
    """Tell whether all layers are the same, and their heads as wide together as the tower."""
    layers = description["layers"]
    inner = layers[0]["heads"] * description.get("head_width", HEAD_WIDTH)
    return inner == description["width"] and all(layer == layers[0] for layer in layers)


def _description(config: Mapping[str, Any], tower: str) -> Mapping[str, Any] | None:
    """Return the value of ``pruned`` of a tower's config, None where there is none."""
    settings = config.get(tower)
    return settings.get(KEY) if isinstance(settings, Mapping) else None
