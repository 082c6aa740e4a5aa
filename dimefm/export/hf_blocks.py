"""What the transformer blocks of open_clip and of transformers have in common, and their names.

Two faces of one computation: a block of open_clip multiplies query, key and value at once, a block
of transformers has a layer for each. Written against open_clip_torch 3.x.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

Tensors = dict[str, Tensor]

BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of a block, by open_clip's name -> by that of transformers."""


class NotExpressible(ValueError):
    """Why no class of transformers computes a tower; the message completes "it has ..."."""


def shape_of(transformer: nn.Module) -> dict[str, Any]:
    """Return the settings that transformers has for all blocks of open_clip's transformer.

    Raises NotExpressible for blocks of another kind, or that differ.
    """
    blocks = list(transformer.resblocks)
    shapes = []
    for block in blocks:
        is_usual = type(block) is ResidualAttentionBlock and isinstance(block.ls_1, nn.Identity)
        if not is_usual or not isinstance(block.attn, nn.MultiheadAttention):
            raise NotExpressible("blocks that transformers does not have (pruned, scaled or gated)")
        shapes.append(
            {
                "hidden_size": block.attn.embed_dim,
                "intermediate_size": block.mlp.c_fc.out_features,
                "num_attention_heads": block.attn.num_heads,
                "hidden_act": activation(block.mlp.gelu),
                "layer_norm_eps": one_eps([block.ln_1, block.ln_2]),
            }
        )
    for shape in shapes:
        if shape != shapes[0]:
            raise NotExpressible("layers that differ in their sizes")
    return {**shapes[0], "num_hidden_layers": len(blocks)}


def activation(module: nn.Module) -> str:
    """Return the name that transformers has for an activation; raise NotExpressible without one."""
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    raise NotExpressible(f"the activation {type(module).__name__}")


def one_eps(norms: Iterable[nn.Module]) -> float:
    """Return the epsilon of layer norms; raise NotExpressible unless they have the same."""
    found = set()
    for norm in norms:
        if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
            raise NotExpressible("norms that are no plain layer norms")
        found.add(norm.eps)
    if len(found) != 1:
        raise NotExpressible("layer norms of different epsilons")
    return found.pop()


def blocks(
    tensors: Tensors,
    count: int,
    prefix: str = "transformer.resblocks",
    joined_name: str = "attn.in_proj_",
    names: Mapping[str, str] = BLOCK_NAMES,
) -> Tensors:
    """Take the tensors of ``count`` blocks out of ``tensors`` and return them as transformers'.

    Without more they have open_clip's names. ``prefix`` stands before the number of a block,
    ``joined_name`` is that of queries, keys and values [3 W, W] or [3 W] without "weight" or
    "bias", and ``names`` are the parts of a block, by their own name -> by that of transformers.
    """
    renamed: Tensors = {}
    for number in range(count):
        old = f"{prefix}.{number}."
        new = f"encoder.layers.{number}."
        for kind in ("weight", "bias"):
            joined = tensors.pop(f"{old}{joined_name}{kind}")
            for name, part in zip("qkv", joined.chunk(3), strict=True):
                renamed[f"{new}self_attn.{name}_proj.{kind}"] = part
            for before, after in names.items():
                renamed[f"{new}{after}.{kind}"] = tensors.pop(f"{old}{before}.{kind}")
    return renamed


def take(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """Take tensors out of a state dict and return them under their new names.

    A name is that of a tensor, or of a layer with a weight and a bias.
    """
    renamed: Tensors = {}
    for old, new in names.items():
        if old in tensors:
            renamed[new] = tensors.pop(old)
            continue
        for kind in ("weight", "bias"):
            renamed[f"{new}.{kind}"] = tensors.pop(f"{old}.{kind}")
    return renamed


def refuse_leftovers(tensors: Tensors) -> None:
    """Raise NotExpressible for tensors that nothing was made from."""
    if tensors:
        names = sorted(tensors)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise NotExpressible(f"weights without a place: {', '.join(names[:3])}{more}")
