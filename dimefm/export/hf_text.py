"""Text towers of open_clip as ``CLIPTextModel`` and ``SiglipTextModel`` of transformers.

The mapping of CLIP was proven on random weights with transformers 4.57 and 5.24, to 5e-6 in logits
of scale 50 (``tests/golden/test_hf_export.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dimefm.export import hf_blocks, hf_files
from dimefm.export.hf_blocks import NotExpressible, Tensors
from dimefm.export.whole import WholeClip
from dimefm.models.hf.model import HfClip

STATED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "hidden_act",
    "layer_norm_eps",
    "max_position_embeddings",
    "vocab_size",
    "projection_dim",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Settings of a text tower of transformers that decide what it computes."""

EMBEDDINGS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
}
"""What stands around the blocks, by open_clip's name -> by that of transformers."""

ARGMAX_EOS = 2  # for which transformers pools where the largest token is


@dataclass(frozen=True)
class Part:
    """A tower of transformers: its config, its tensors, and the projection behind it [D, W].

    The projection is None where the tower ends in its own.
    """

    config: dict[str, Any]
    tensors: Tensors
    projection: Tensor | None = None


def clip_text(whole: WholeClip) -> Part:
    """Return a text tower as ``CLIPTextModel``; raise NotExpressible for another kind."""
    if isinstance(whole.text, HfClip):
        return _of_transformers(whole.text)
    tower = whole.text_tower
    tensors = whole.text_state()
    _refuse_foreign(tower)
    if getattr(tower, "attn_mask", None) is None:
        raise NotExpressible("a text tower without a causal mask")
    pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", "")
    if pool not in ("argmax", "eos"):
        raise NotExpressible(f"a text tower that pools at '{pool}'")
    tokenizer: Any = whole.tokenizer
    hf_files.check_clip_tokenizer(tokenizer)
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    if pool == "eos":
        end = getattr(tower, "text_eos_id", None) or tower.eos_id
    if end == ARGMAX_EOS:
        raise NotExpressible("2 as the token of a text's end")
    projection = tower.text_projection
    if not isinstance(projection, nn.Parameter):
        raise NotExpressible("a text projection that is no plain matrix")
    if "cls_emb" in tensors:
        raise NotExpressible("a class token in its text tower")
    return _clip_text(tower, tensors, start, end)


def _of_transformers(model: HfClip) -> Part:
    """Return the text tower of a ``CLIPModel``, as it is."""
    if model.config.model_type != "clip":
        raise NotExpressible(f"a text tower of transformers' type '{model.config.model_type}'")
    inner: Any = model.model
    stated = inner.config.text_config.to_dict()
    config = {name: stated[name] for name in STATED if name in stated}
    return Part(
        {"model_type": "clip_text_model", **config},
        dict(inner.text_model.state_dict()),
        inner.text_projection.weight,
    )


def _clip_text(tower: Any, tensors: Tensors, start: int, end: int) -> Part:
    shape = hf_blocks.shape_of(tower.transformer)
    hf_blocks.one_eps([tower.ln_final, tower.transformer.resblocks[0].ln_1])
    projection = tensors.pop("text_projection").T
    renamed = hf_blocks.blocks(tensors, shape["num_hidden_layers"])
    renamed |= hf_blocks.take(tensors, EMBEDDINGS)
    hf_blocks.refuse_leftovers(tensors)
    positions = len(renamed["embeddings.position_embedding.weight"])
    config = {
        "model_type": "clip_text_model",
        **shape,
        "max_position_embeddings": positions,
        "vocab_size": len(renamed["embeddings.token_embedding.weight"]),
        "projection_dim": len(projection),
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    return Part(config, renamed, projection)


def siglip_text(whole: WholeClip) -> Part:
    """Return a text tower as ``SiglipTextModel``; raise NotExpressible for another kind."""
    tower = whole.text_tower
    tensors = whole.text_state()
    _refuse_foreign(tower)
    if getattr(tower, "attn_mask", None) is not None or tower.pool_type != "last":
        raise NotExpressible("a text tower that does not read and pool as SigLIP's")
    if "cls_emb" in tensors or getattr(tower, "use_pad_mask", False):
        raise NotExpressible("a text tower with a class token or a mask of padding")
    shape = hf_blocks.shape_of(tower.transformer)
    hf_blocks.one_eps([tower.ln_final, tower.transformer.resblocks[0].ln_1])
    head = _head(tensors)
    renamed = hf_blocks.blocks(tensors, shape["num_hidden_layers"])
    renamed |= hf_blocks.take(tensors, EMBEDDINGS)
    hf_blocks.refuse_leftovers(tensors)
    config = {
        "model_type": "siglip_text_model",
        **shape,
        "max_position_embeddings": len(renamed["embeddings.position_embedding.weight"]),
        "vocab_size": len(renamed["embeddings.token_embedding.weight"]),
        "projection_size": len(head["head.bias"]),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": getattr(tower, "pad_id", 0),
    }
    return Part(config, renamed | head)


def _head(tensors: Tensors) -> Tensors:
    """Take SigLIP's last layer, which has a bias, out of the tensors of a text tower."""
    if "text_projection" in tensors:
        matrix = tensors.pop("text_projection").T
        return {"head.weight": matrix, "head.bias": torch.zeros(len(matrix))}
    if "text_projection.weight" not in tensors or "text_projection.bias" not in tensors:
        raise NotExpressible("a text tower without a projection")
    return hf_blocks.take(tensors, {"text_projection": "head"})


def _refuse_foreign(tower: Any) -> None:
    if not hasattr(tower, "transformer") or not hasattr(tower.transformer, "resblocks"):
        raise NotExpressible(f"a text tower of the kind {type(tower).__name__}")
