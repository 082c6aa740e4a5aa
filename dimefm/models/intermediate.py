"""What a tower computes in addition to its rows: the feature before its last projection, patch
tokens, and the states of words.

The parts of a tower run one after another as its own forward runs them, so the rows are those of
``encode_image`` and ``encode_text`` to the last bit, with all that is random in training (dropped
patches and paths) drawn once.

Families. Images: open_clip's VisionTransformer and ModifiedResNet, and a TimmModel whose trunk is
``forward_features`` and ``forward_head``, as timm's are. Sentences: open_clip's own text tower
without a class token, standing alone or as parts of a CLIP. The model is a CLIP, a CustomTextCLIP,
or one tower of :mod:`dimefm.models.towers`.

Source: DeCLIP (ICLR 2022) takes patches before the last norm and projection (released
prototype/model/image_encoder/visual_transformer.py:68), SLIP's head the feature before the
projection (:69-70), the masked language model the outputs of the last norm at all places.

Written against open_clip_torch 3.x, timm 1.x and torch's own attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import ModelError
from dimefm.models.towers import ImageTower, TextTower


class ImageOutputs(NamedTuple):
    """What an image tower gives of B images.

    ``rows`` [B, D] are the tower's, not normalised; ``hidden`` [B, W] is what its last projection
    takes, the rows themselves where it has none of its own; ``patches`` [B, P, W2] are the places
    of the last layer without class tokens, before the last norm (of a TimmModel behind its
    trunk's). P is smaller where patches are dropped in training.
    """

    rows: Tensor
    hidden: Tensor
    patches: Tensor


class TextOutputs(NamedTuple):
    """What a text tower gives of B sentences: ``rows`` [B, D], not normalised, and ``states`` [B,
    L, W], the outputs of its last norm at all L places, padding included."""

    rows: Tensor
    states: Tensor


class TowerDims(NamedTuple):
    """Widths of a model's hidden features, patches and states of words, and how many words it
    knows; None where there is no such tower."""

    hidden: int | None
    patches: int | None
    words: int | None
    vocabulary: int | None


def image(model: nn.Module, pixels: Tensor) -> ImageOutputs:
    """Return what the image tower of ``model`` gives of prepared pixels [B, 3, S, S]; raise
    ModelError for others.
    """
    visual = (
        getattr(model, "visual", None)
        if isinstance(model, CLIP | CustomTextCLIP | ImageTower)
        else None
    )
    if isinstance(visual, VisionTransformer):
        return _vision_transformer(visual, pixels)
    if isinstance(visual, ModifiedResNet):
        return _modified_resnet(visual, pixels)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "forward_features"):
        return _timm_model(visual, pixels)
    raise _foreign(
        model if visual is None else visual,
        "patch tokens",
        "of open_clip's ViT, ModifiedResNet or timm",
    )


def text(model: nn.Module, tokens: Tensor) -> TextOutputs:
    """Return what the text tower of ``model`` gives of tokens [B, L], L at most its context length.

    Fewer places than the context give the same rows where
    :func:`~dimefm.models.trimmed_text.trimmed` allows them. Raises ModelError for other families.
    """
    parts = text_parts(model)
    if isinstance(parts, CLIP):
        pool, eos = parts.text_pool_type, parts.text_eos_id
        dtype = parts.transformer.get_cast_dtype()
        x = parts.token_embedding(tokens).to(dtype)
        x, mask = x + parts.positional_embedding[: x.shape[1]].to(dtype), parts.attn_mask
    else:
        pool, eos = parts.pool_type, parts.eos_id
        x, mask = parts._embeds(tokens)
    n = x.shape[1]
    x = parts.transformer(x, attn_mask=mask if mask is None else mask[..., :n, :n])
    states = parts.ln_final(x)
    pooled = text_global_pool(states, tokens, pool, eos_token_id=eos)
    return TextOutputs(projected(parts.text_projection, pooled), states)


def projected(projection: nn.Module | Tensor | None, features: Tensor) -> Tensor:
    """Return features [.., W] behind a projection as open_clip keeps it: a module, a matrix [W, D],
    or None.
    """
    if projection is None:
        return features
    return projection(features) if isinstance(projection, nn.Module) else features @ projection


@torch.no_grad()
def feature_dims(model: nn.Module) -> TowerDims:
    """Return what to build heads on ``model`` with; the model is left as it was.

    A blank image goes through its image tower. Raises ModelError for families that ``image`` and
    ``text`` do not know, and for a tower that computes other rows than ``image`` does.
    """
    hidden = patches = words = vocabulary = None
    if hasattr(model, "visual"):
        found = _tried(model)
        hidden, patches = found.hidden.shape[-1], found.patches.shape[-1]
    if not isinstance(model, ImageTower):
        embedding = text_parts(model).token_embedding
        words, vocabulary = embedding.embedding_dim, embedding.num_embeddings
    return TowerDims(hidden, patches, words, vocabulary)


def _tried(model: nn.Module) -> ImageOutputs:
    """Return what the image tower gives of a blank image of its size; raise ModelError where its
    own rows are others.
    """
    training = {module: module.training for module in model.modules()}
    size, weight = model.visual.image_size, next(model.visual.parameters())
    sides = size if isinstance(size, tuple | list) else (size, size)
    pixels = torch.zeros(1, 3, *sides, device=weight.device, dtype=weight.dtype)
    model.eval()
    try:
        found = image(model, pixels)
        if torch.equal(found.rows, model.encode_image(pixels)):
            return found
    except (
        AttributeError,
        TypeError,
        RuntimeError,
    ) as error:  # a trunk whose parts are not timm's usual ones
        raise _foreign(model.visual, "its parts one by one", "of another architecture") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    raise _foreign(
        model.visual, "its own rows when its parts run one by one", "of another architecture"
    )


def text_parts(model: nn.Module) -> CLIP | TextTransformer:
    """Return the module that holds the parts of the text tower of ``model``; raise ModelError when
    they are not known.
    """
    if isinstance(model, CLIP):
        return model
    tower = getattr(model, "text", None) if isinstance(model, CustomTextCLIP | TextTower) else None
    if not isinstance(tower, TextTransformer):
        raise _foreign(tower or model, "states of words", "with open_clip's own text tower")
    if tower.cls_emb is not None:
        raise _foreign(
            tower,
            "states of words behind its last norm (it has a class token)",
            "without a class token",
        )
    return tower


def _foreign(tower: nn.Module, what: str, remedy: str) -> ModelError:
    trunk = getattr(tower, "trunk", None)
    name = type(tower).__name__ + ("" if trunk is None else f" {type(trunk).__name__}")
    return ModelError(
        f"{name}: does not give {what}. Fix: choose a model {remedy}, or leave out the loss that"
        " needs it"
    )


def _vision_transformer(visual: VisionTransformer, pixels: Tensor) -> ImageOutputs:
    x = visual.transformer(visual._embeds(pixels))
    pooled, _ = visual._pool(x)
    return ImageOutputs(projected(visual.proj, pooled), pooled, x[:, 1:])


def _modified_resnet(visual: ModifiedResNet, pixels: Tensor) -> ImageOutputs:
    x = visual.stem(pixels)
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    return ImageOutputs(*_attention_pool(visual.attnpool, x), _places(x))


def _attention_pool(pool: AttentionPool2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows [B, D], what attention gives at the pooled place [B, W]) of a map [B, W, H, H].

    The steps of torch's ``multi_head_attention_forward``, in its order and shapes, with a look
    before the projection.
    """
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
    x = x + pool.positional_embedding[:, None, :].to(x.dtype)
    length, batch, width = x.shape
    heads = (
        F.linear(x, layer.weight, layer.bias)
        .view(length, batch * pool.num_heads, -1)
        .transpose(0, 1)
        .view(batch, pool.num_heads, length, -1)
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    x = (
        F.scaled_dot_product_attention(*heads)
        .permute(2, 0, 1, 3)
        .contiguous()
        .view(length * batch, width)
    )
    return F.linear(x, pool.c_proj.weight, pool.c_proj.bias)[:batch], x[:batch]


def _timm_model(visual: TimmModel, pixels: Tensor) -> ImageOutputs:
    trunk = visual.trunk
    x = trunk.forward_features(pixels)
    if not isinstance(x, Tensor) or x.ndim not in (3, 4):
        raise _foreign(visual, "patch tokens", "with a map or tokens in its last layer")
    if len(visual.head):
        hidden = trunk.forward_head(x)
        rows = visual.head(hidden)
    else:
        hidden = trunk.forward_head(x, pre_logits=True)
        rows = trunk.get_classifier()(hidden)
    last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    patches = x[:, getattr(trunk, "num_prefix_tokens", 0) :] if x.ndim == 3 else _places(x, last)
    return ImageOutputs(rows, hidden if hidden.ndim == 2 else rows, patches)


def _places(x: Tensor, channels_last: bool = False) -> Tensor:
    """Return a map [B, W, H, H], or [B, H, H, W], as tokens [B, H * H, W]."""
    return x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)
