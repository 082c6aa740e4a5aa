"""Image towers as ``CLIPVisionModel``, ``SiglipVisionModel`` and ``TimmWrapperModel``.

Written against open_clip_torch 3.x, timm 1.x and transformers 5.x.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dimefm.export import hf_blocks
from dimefm.export.hf_blocks import NotExpressible
from dimefm.export.hf_text import Part
from dimefm.export.whole import WholeClip

TIMM_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
POOLS = ("", "avg", "max", "avgmax", "token", "map")


def clip_image(whole: WholeClip) -> Part:
    """Return open_clip's own vision transformer as ``CLIPVisionModel``.

    Raises NotExpressible for any other tower.
    """
    tower = whole.visual
    if not isinstance(tower, VisionTransformer):
        raise NotExpressible(f"an image tower of the kind {type(tower).__name__}")
    is_plain = (
        getattr(tower, "attn_pool", None) is None
        and tower.pool_type == "tok"
        and not tower.final_ln_after_pool
        and isinstance(tower.ln_pre, nn.LayerNorm)
        and tower.conv1.bias is None
        and tower.proj is not None
    )
    if not is_plain:
        raise NotExpressible("an image tower that does not pool as OpenAI's ViT")
    tensors = whole.visual_state()
    shape = hf_blocks.shape_of(tower.transformer)
    eps = hf_blocks.one_eps([tower.ln_pre, tower.ln_post, tower.transformer.resblocks[0].ln_1])
    side = _square(tower.patch_size, "patches")
    size = _square(tower.image_size, "images")
    projection = tensors.pop("proj").T
    renamed = hf_blocks.blocks(tensors, shape["num_hidden_layers"])
    renamed |= hf_blocks.take(
        tensors,
        {
            "conv1.weight": "embeddings.patch_embedding.weight",
            "class_embedding": "embeddings.class_embedding",
            "positional_embedding": "embeddings.position_embedding.weight",
            "ln_pre": "pre_layrnorm",
            "ln_post": "post_layernorm",
        },
    )
    hf_blocks.refuse_leftovers(tensors)
    config = {
        "model_type": "clip_vision_model",
        **shape,
        "layer_norm_eps": eps,
        "image_size": size,
        "patch_size": side,
        "projection_dim": len(projection),
    }
    return Part(config, renamed, projection)


def siglip_image(whole: WholeClip) -> Part:
    """Return timm's vision transformer with SigLIP's pooling as ``SiglipVisionModel``.

    Raises NotExpressible for any other tower.
    """
    trunk = _siglip_trunk(whole.visual)
    tensors = dict(trunk.state_dict())
    shapes = [_timm_shape(block) for block in trunk.blocks]
    for shape in shapes:
        if shape != shapes[0]:
            raise NotExpressible("layers that differ in their sizes")
    pool = trunk.attn_pool
    heads = shapes[0]["num_attention_heads"]
    hidden = shapes[0]["intermediate_size"]
    eps = hf_blocks.one_eps([trunk.norm, pool.norm, trunk.blocks[0].norm1])
    if pool.num_heads != heads or pool.mlp.fc1.out_features != hidden:
        raise NotExpressible("a pooling of other sizes than its layers")
    renamed = hf_blocks.blocks(tensors, len(shapes), "blocks", "attn.qkv.", TIMM_BLOCK)
    renamed |= hf_blocks.take(
        tensors,
        {
            "patch_embed.proj": "embeddings.patch_embedding",
            "norm": "post_layernorm",
            "attn_pool.latent": "head.probe",
            "attn_pool.proj": "head.attention.out_proj",
            "attn_pool.norm": "head.layernorm",
            "attn_pool.mlp.fc1": "head.mlp.fc1",
            "attn_pool.mlp.fc2": "head.mlp.fc2",
        },
    )
    renamed["embeddings.position_embedding.weight"] = tensors.pop("pos_embed")[0]
    for kind in ("weight", "bias"):
        query = tensors.pop(f"attn_pool.q.{kind}")
        rest = tensors.pop(f"attn_pool.kv.{kind}")
        renamed[f"head.attention.in_proj_{kind}"] = torch.cat([query, rest])
    hf_blocks.refuse_leftovers(tensors)
    config = {
        "model_type": "siglip_vision_model",
        **shapes[0],
        "layer_norm_eps": eps,
        "num_hidden_layers": len(shapes),
        "image_size": _square(trunk.patch_embed.img_size, "images"),
        "patch_size": _square(trunk.patch_embed.patch_size, "patches"),
        "num_channels": 3,
        "vision_use_head": True,
    }
    return Part(config, renamed)


def _siglip_trunk(visual: Any) -> Any:
    """Return the trunk of a timm tower that pools as SigLIP's; raise NotExpressible otherwise."""
    trunk = getattr(visual, "trunk", None)
    is_siglip = (
        isinstance(visual, TimmModel)
        and not len(visual.head)
        and isinstance(trunk, timm.models.VisionTransformer)
        and getattr(trunk, "attn_pool", None) is not None
    )
    if not is_siglip:
        raise NotExpressible("an image tower that does not pool as SigLIP's")
    no_others = (trunk.norm_pre, trunk.fc_norm, trunk.head)
    if trunk.cls_token is not None or any(not isinstance(m, nn.Identity) for m in no_others):
        raise NotExpressible("a class token, or a norm that SigLIP has not")
    return trunk


def _timm_shape(block: nn.Module) -> dict[str, Any]:
    """Return the settings that transformers has for a block of timm's vision transformer."""
    usual = (block.ls1, block.ls2, block.attn.q_norm, block.attn.k_norm)
    if any(not isinstance(module, nn.Identity) for module in usual):
        raise NotExpressible("scaled layers, or norms of queries and keys")
    return {
        "hidden_size": block.attn.proj.out_features,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": hf_blocks.activation(block.mlp.act),
    }


def timm_image(whole: WholeClip) -> Part:
    """Return any tower of timm that ends in a linear projection as ``TimmWrapperModel``.

    Raises NotExpressible for a tower whose projection is more than a matrix.
    """
    visual = whole.visual
    if not isinstance(visual, TimmModel) or whole.image_cfg is None:
        raise NotExpressible(f"an image tower of the kind {type(visual).__name__}")
    settings = whole.image_cfg["vision_cfg"]
    architecture = str(settings["timm_model_name"])
    trunk = visual.trunk
    pool = settings.get("timm_pool", "avg")
    if pool not in POOLS:
        raise NotExpressible(f"the pooling '{pool}' behind a timm model")
    arguments: dict[str, Any] = {"global_pool": pool} if pool else {}
    if hasattr(trunk, "set_input_size"):
        arguments["img_size"] = settings.get("image_size", 224)
    tensors = {f"timm_model.{name}": tensor for name, tensor in trunk.state_dict().items()}
    _check_wrapped(architecture, arguments, trunk)
    config = {
        "model_type": "timm_wrapper",
        "architecture": architecture,
        "model_args": arguments,
        "hidden_size": trunk.num_features,
        "do_pooling": True,
        "initializer_range": 0.02,
    }
    return Part(config, tensors, _timm_projection(visual, trunk, whole.dim))


def _timm_projection(visual: Any, trunk: Any, dim: int) -> Tensor:
    """Return the matrix [D, W] behind a timm model."""
    if not len(visual.head):
        if trunk.get_classifier() is not None and isinstance(trunk.get_classifier(), nn.Linear):
            raise NotExpressible("a classifier with a bias as its projection")
        return torch.eye(dim)
    last = getattr(visual.head, "proj", None)
    if not isinstance(last, nn.Linear) or last.bias is not None:
        raise NotExpressible("a projection that is no plain matrix")
    return last.weight


def _check_wrapped(architecture: str, arguments: dict[str, Any], trunk: nn.Module) -> None:
    """Raise NotExpressible unless transformers' wrapper would build the same trunk."""
    try:
        with torch.device("meta"):
            wrapped = timm.create_model(architecture, num_classes=0, **arguments)
    except Exception as error:  # timm raises whatever a network's code raises
        raise NotExpressible(f"a timm model that cannot be built without a head ({error})") from (
            error
        )
    expected = {name: tensor.shape for name, tensor in wrapped.state_dict().items()}
    found = {name: tensor.shape for name, tensor in trunk.state_dict().items()}
    if expected != found:
        raise NotExpressible(f"another {architecture} than timm builds without a head")


def _square(size: Any, what: str) -> int:
    """Return the side of a square; raise NotExpressible for another shape."""
    sides = [size] if isinstance(size, int) else list(size)
    if len(set(sides)) != 1:
        raise NotExpressible(f"{what} that are not square")
    return int(sides[0])
