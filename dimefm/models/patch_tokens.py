"""The teacher's tokens in its joint space: of each image or sentence those most similar to its own
vector.

CLIP trains the pooled row alone, so a token is brought into the joint space as if it stood alone at
the end of the tower:

* a ViT: last norm and projection of each patch;
* a ModifiedResNet: value and output projection of its attention pool, without position (MaskCLIP,
  ECCV 2022, section 3.2);
* a TimmModel: its whole head, of each place as a map of that one place;
* a text tower: last norm and projection of each place up to the end of the text, all places where
  it looks at padding.

A cache has as many tokens of every item; an item with fewer repeats its least similar one, which
changes no maximum.
"""

from __future__ import annotations

import functools

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import ModelError
from dimefm.models import intermediate, open_clip
from dimefm.models.encoder import BorrowedTower, Encoder
from dimefm.models.inference.precision import computing


def image_tokens(encoder: Encoder, pixels: Tensor, count: int) -> Tensor:
    """Return float32 unit tokens [B, count, D] of pixels [B, 3, S, S]; an item with one that has no
    length is all NaN.

    Raises ModelError for a tower that gives no tokens, and when there is no memory for one image.
    """
    return encoder.image_pieces.encode(functools.partial(_image_tokens, encoder, count), pixels)


def text_tokens(encoder: Encoder, tokens: Tensor, count: int) -> Tensor:
    """Return float32 unit tokens [N, count, D] of tokens [N, L] of sentences, as
    :func:`image_tokens` does.
    """
    return encoder.text_pieces.encode(functools.partial(_text_tokens, encoder, count), tokens)


def check(encoder: Encoder, kind: str) -> None:
    """Raise ModelError unless the encoder's tower for ``kind`` "image" or "text" gives tokens of
    its dimension.
    """
    try:
        if kind == "image":
            found = image_tokens(encoder, torch.zeros(1, 3, *encoder.image_size), 1)
        else:
            found = text_tokens(encoder, encoder.tokenize(["a"])[0], 1)
    except (
        AttributeError,
        TypeError,
        RuntimeError,
        AssertionError,
    ) as error:  # parts of a tower that is not the usual one
        raise ModelError(
            f"{encoder.card.name}: its {kind} tokens cannot be projected"
            f" ({open_clip.reason_of(error)}); name another teacher for --tokens"
        ) from error
    if found.shape[-1] != encoder.card.dim:
        raise ModelError(
            f"{encoder.card.name}: its {kind} tokens have {found.shape[-1]} dimensions, its rows"
            f" {encoder.card.dim}; name another teacher for --tokens"
        )


def chosen(tokens: Tensor, rows: Tensor, count: int, lengths: Tensor | None = None) -> Tensor:
    """Return float32 unit tokens [B, count, D]: of tokens [B, P, D] those with the largest cosines
    to ``rows`` [B, D].

    The most similar come first, of equal ones the earlier. Of item i only the first ``lengths[i]``
    count (None: all).
    """
    tokens = F.normalize(tokens.float(), dim=-1)
    places = tokens.shape[1]
    lengths = torch.full((len(tokens),), places) if lengths is None else lengths
    lengths = lengths.to(tokens.device)[:, None]
    cosines = (tokens @ F.normalize(rows.float(), dim=-1)[..., None])[..., 0]
    hidden = torch.arange(places, device=tokens.device) >= lengths
    order = cosines.masked_fill(hidden, -torch.inf).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, torch.arange(count, device=tokens.device).minimum(lengths - 1))
    found = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
    whole = (found.norm(dim=-1) > 0.5).all(dim=1)  # also False for NaN
    return found.masked_fill(~whole[:, None, None], torch.nan)


@torch.inference_mode()
def _image_tokens(encoder: Encoder, count: int, pixels: Tensor) -> Tensor:
    model = (
        encoder.image_model.teacher
        if isinstance(encoder.image_model, BorrowedTower)
        else encoder.image_model
    )
    pixels = pixels.to(encoder.device, non_blocking=True).contiguous(memory_format=encoder._layout)
    with computing(encoder.precision, encoder.device):
        found = intermediate.image(model, pixels)
        patches = projected(model.visual, found.patches)
    return chosen(patches, found.rows, count)


@torch.inference_mode()
def _text_tokens(encoder: Encoder, count: int, tokens: Tensor) -> Tensor:
    lengths = encoder.lengths_read(tokens)
    tokens = tokens[:, : int(lengths.max())]
    with computing(encoder.precision, encoder.device):
        found = intermediate.text(encoder.text_model, tokens.to(encoder.device, non_blocking=True))
        words = intermediate.projected(
            intermediate.text_parts(encoder.text_model).text_projection, found.states
        )
    return chosen(words, found.rows, count, lengths)


def projected(visual: nn.Module, patches: Tensor) -> Tensor:
    """Return patches [B, P, W] of an image tower in its joint space, [B, P, D]; raise ModelError
    where none leads there.
    """
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return intermediate.projected(visual.proj, visual.ln_post(patches))
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool.c_proj(visual.attnpool.v_proj(patches))
    if isinstance(visual, TimmModel):
        return _through_head(visual, patches)
    raise ModelError(
        f"{type(visual).__name__}: its patches have no projection of their own; name another"
        " teacher for --tokens"
    )


def _through_head(visual: TimmModel, patches: Tensor) -> Tensor:
    """Return patches [B, P, W] behind the head of a timm tower, each alone."""
    trunk, (batch, places, width) = visual.trunk, patches.shape
    x = patches.reshape(batch * places, width)
    layout = getattr(trunk, "output_fmt", None) or (
        "NLC" if hasattr(trunk, "num_prefix_tokens") else "NCHW"
    )
    if layout == "NCHW":
        x = x[:, :, None, None]
    elif layout == "NHWC":
        x = x[:, None, None]
    # where the head looks for class tokens it finds the patch, and behind them the patch again
    else:
        x = x[:, None].expand(-1, trunk.num_prefix_tokens + 1, -1)
    return visual.head(trunk.forward_head(x)).view(batch, places, -1)
