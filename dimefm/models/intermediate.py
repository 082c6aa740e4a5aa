"""Intermediate features of a tower: the feature before its last projection, patch tokens, and
word states.

The layers of a tower run in the order of its own forward. The embeddings therefore equal those of
``encode_image`` and ``encode_text`` to the last bit. Random parts of training, as dropped patches
and paths, are drawn once.

Supported image towers: open_clip's VisionTransformer and ModifiedResNet, and a TimmModel whose
trunk has ``forward_features`` and ``forward_head``. Supported text towers: open_clip's own without
a class token, as a module or as parts of a CLIP. The model is a CLIP, a CustomTextCLIP, or a tower
of :mod:`dimefm.models.towers`.

Source: DeCLIP (ICLR 2022) takes patches before the last norm and projection (released
prototype/model/image_encoder/visual_transformer.py:68). SLIP's head takes the feature before the
projection (:69-70). The masked language model takes the outputs of the last norm at all positions.

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
    """Outputs of an image tower for B images.

    ``rows`` [B, D] are the embeddings, not normalised. ``hidden`` [B, W] is the input of the last
    projection, or the embeddings where the tower has no projection. ``patches`` [B, P, W2] are the
    tokens of the last layer without class tokens, before the last norm (for a TimmModel, after the
    norm of its trunk). P is smaller while training drops patches.
    """

    rows: Tensor
    hidden: Tensor
    patches: Tensor


class TextOutputs(NamedTuple):
    """Outputs of a text tower for B sentences.

    ``rows`` [B, D] are the embeddings, not normalised. ``states`` [B, L, W] are the outputs of the
    last norm at all L positions, padding included.
    """

    rows: Tensor
    states: Tensor


class TowerDims(NamedTuple):
    """Widths of a model's hidden features, patches and word states, and its vocabulary size.

    A field is None where the model has no such tower.
    """

    hidden: int | None
    patches: int | None
    words: int | None
    vocabulary: int | None


def image(model: nn.Module, pixels: Tensor) -> ImageOutputs:
    """Return the outputs of the image tower of ``model`` for prepared pixels [B, 3, S, S].

    Raises ModelError for a tower that is not supported.
    """
    visual = None
    if isinstance(model, CLIP | CustomTextCLIP | ImageTower):
        visual = getattr(model, "visual", None)
    if isinstance(visual, VisionTransformer):
        return _vision_transformer(visual, pixels)
    if isinstance(visual, ModifiedResNet):
        return _modified_resnet(visual, pixels)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "forward_features"):
        return _timm_model(visual, pixels)
    raise _unsupported(
        model if visual is None else visual,
        "patch tokens",
        "of open_clip's ViT, ModifiedResNet or timm",
    )


def text(model: nn.Module, tokens: Tensor) -> TextOutputs:
    """Return the outputs of the text tower of ``model`` for tokens [B, L].

    L is at most the context length. A smaller L gives the same embeddings where
    :func:`~dimefm.models.trimmed_text.trimmed` allows it. Raises ModelError for a tower that is not
    supported.
    """
    parts = text_parts(model)
    if isinstance(parts, CLIP):
        pool = parts.text_pool_type
        eos = parts.text_eos_id
        mask = parts.attn_mask
        dtype = parts.transformer.get_cast_dtype()
        words = parts.token_embedding(tokens).to(dtype)
        positions = parts.positional_embedding[: words.shape[1]].to(dtype)
        x = words + positions
    else:
        pool = parts.pool_type
        eos = parts.eos_id
        x, mask = parts._embeds(tokens)
    if mask is not None:
        length = x.shape[1]
        mask = mask[..., :length, :length]
    x = parts.transformer(x, attn_mask=mask)
    states = parts.ln_final(x)
    pooled = text_global_pool(states, tokens, pool, eos_token_id=eos)
    return TextOutputs(projected(parts.text_projection, pooled), states)


def projected(projection: nn.Module | Tensor | None, features: Tensor) -> Tensor:
    """Return features [.., W] after ``projection``, which is a module, a matrix [W, D], or None."""
    if projection is None:
        return features
    if isinstance(projection, nn.Module):
        return projection(features)
    return features @ projection


@torch.no_grad()
def feature_dims(model: nn.Module) -> TowerDims:
    """Return the widths that heads on ``model`` need; the model is left as it was.

    The widths of the image tower come from a blank image. Raises ModelError for a tower that
    ``image`` or ``text`` does not support, and for one whose own embeddings differ from theirs.
    """
    hidden = None
    patches = None
    words = None
    vocabulary = None
    if hasattr(model, "visual"):
        outputs = _outputs_of_blank_image(model)
        hidden = outputs.hidden.shape[-1]
        patches = outputs.patches.shape[-1]
    if not isinstance(model, ImageTower):
        embedding = text_parts(model).token_embedding
        words = embedding.embedding_dim
        vocabulary = embedding.num_embeddings
    return TowerDims(hidden, patches, words, vocabulary)


def _outputs_of_blank_image(model: nn.Module) -> ImageOutputs:
    """Return the outputs of the image tower for a blank image of its size.

    Raises ModelError where ``encode_image`` gives another embedding.
    """
    training = {module: module.training for module in model.modules()}
    size = model.visual.image_size
    weight = next(model.visual.parameters())
    height_and_width = size if isinstance(size, tuple | list) else (size, size)
    pixels = torch.zeros(1, 3, *height_and_width, device=weight.device, dtype=weight.dtype)
    model.eval()
    try:
        outputs = image(model, pixels)
        expected = model.encode_image(pixels)
    except (AttributeError, TypeError, RuntimeError) as error:  # the trunk lacks timm's usual parts
        raise _unsupported(
            model.visual, "its parts one by one", "of another architecture"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    if not torch.equal(outputs.rows, expected):
        raise _unsupported(
            model.visual, "its own rows when its parts run one by one", "of another architecture"
        )
    return outputs


def text_parts(model: nn.Module) -> CLIP | TextTransformer:
    """Return the module that holds the layers of the text tower of ``model``.

    Raises ModelError for a text tower that is not supported.
    """
    if isinstance(model, CLIP):
        return model
    tower = None
    if isinstance(model, CustomTextCLIP | TextTower):
        tower = getattr(model, "text", None)
    if not isinstance(tower, TextTransformer):
        raise _unsupported(tower or model, "states of words", "with open_clip's own text tower")
    if tower.cls_emb is not None:
        raise _unsupported(
            tower,
            "states of words behind its last norm (it has a class token)",
            "without a class token",
        )
    return tower


def _unsupported(tower: nn.Module, what: str, remedy: str) -> ModelError:
    """Return the error for a tower that does not give ``what``, a loss's input."""
    name = type(tower).__name__
    trunk = getattr(tower, "trunk", None)
    if trunk is not None:
        name += f" {type(trunk).__name__}"
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
    rows, hidden = _attention_pool(visual.attnpool, x)
    return ImageOutputs(rows, hidden, _as_tokens(x))


def _attention_pool(pool: AttentionPool2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (embeddings [B, D], the pooled feature before the projection [B, W]).

    ``x`` is a feature map [B, W, H, H]. The steps are those of torch's
    ``multi_head_attention_forward``, in its order and shapes.
    """
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
    x = x + pool.positional_embedding[:, None, :].to(x.dtype)
    length, batch, width = x.shape
    heads = []
    for layer in (pool.q_proj, pool.k_proj, pool.v_proj):
        values = F.linear(x, layer.weight, layer.bias)
        values = values.view(length, batch * pool.num_heads, -1).transpose(0, 1)
        heads.append(values.view(batch, pool.num_heads, length, -1))
    attended = F.scaled_dot_product_attention(*heads)
    attended = attended.permute(2, 0, 1, 3).contiguous().view(length * batch, width)
    rows = F.linear(attended, pool.c_proj.weight, pool.c_proj.bias)
    return rows[:batch], attended[:batch]


def _timm_model(visual: TimmModel, pixels: Tensor) -> ImageOutputs:
    trunk = visual.trunk
    x = trunk.forward_features(pixels)
    if not isinstance(x, Tensor) or x.ndim not in (3, 4):
        raise _unsupported(visual, "patch tokens", "with a map or tokens in its last layer")
    if len(visual.head):
        hidden = trunk.forward_head(x)
        rows = visual.head(hidden)
    else:
        hidden = trunk.forward_head(x, pre_logits=True)
        rows = trunk.get_classifier()(hidden)
    if x.ndim == 3:
        class_tokens = getattr(trunk, "num_prefix_tokens", 0)
        patches = x[:, class_tokens:]
    else:
        channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        patches = _as_tokens(x, channels_last)
    if hidden.ndim != 2:
        hidden = rows
    return ImageOutputs(rows, hidden, patches)


def _as_tokens(x: Tensor, channels_last: bool = False) -> Tensor:
    """Return a feature map [B, W, H, H], or [B, H, H, W], as tokens [B, H * H, W]."""
    if channels_last:
        return x.flatten(1, 2)
    return x.flatten(2).transpose(1, 2)
