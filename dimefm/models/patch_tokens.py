"""The teacher's tokens of an image or text that are most similar to its embedding.

CLIP trains the pooled embedding alone, so a token is projected to the joint space as if it were the
only one at the end of the tower:

* a ViT: last norm and projection of each patch;
* a ModifiedResNet: value and output projection of its attention pool, without position (MaskCLIP,
  ECCV 2022, section 3.2);
* a TimmModel: its whole head, of each place as a map of that one place;
* a text tower: last norm and projection of each place up to the end of the text; all places where
  it reads padding.

A cache has the same number of tokens of every item; an item with fewer repeats its least similar
token, which changes no maximum.
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
    """Return float32 unit tokens [B, count, D] of pixels [B, 3, S, S].

    An item with a token of length 0 is all NaN. Raises ModelError for a tower that gives no tokens,
    and when there is no memory for one image.
    """
    return encoder.image_pieces.encode(functools.partial(_image_tokens, encoder, count), pixels)


def text_tokens(encoder: Encoder, tokens: Tensor, count: int) -> Tensor:
    """Return float32 unit tokens [N, count, D] of texts' tokens [N, L], as ``image_tokens``."""
    return encoder.text_pieces.encode(functools.partial(_text_tokens, encoder, count), tokens)


def check(encoder: Encoder, kind: str) -> None:
    """Raise ModelError unless the "image" or "text" tower gives tokens of its dimension."""
    try:
        if kind == "image":
            pixels = torch.zeros(1, 3, *encoder.image_size)
            tokens = image_tokens(encoder, pixels, 1)
        else:
            text, _ = encoder.tokenize(["a"])
            tokens = text_tokens(encoder, text, 1)
    # a tower may have other parts than its family usually has
    except (AttributeError, TypeError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"{encoder.card.name}: its {kind} tokens cannot be projected"
            f" ({open_clip.reason_of(error)}). Fix: name another teacher for --tokens"
        ) from error
    dim = tokens.shape[-1]
    if dim != encoder.card.dim:
        raise ModelError(
            f"{encoder.card.name}: its {kind} tokens have {dim} dimensions, its rows"
            f" {encoder.card.dim}. Fix: name another teacher for --tokens"
        )


def chosen(
    tokens: Tensor,
    rows: Tensor,
    count: int,
    lengths: Tensor | None = None,
) -> Tensor:
    """Return the ``count`` tokens of each item that are most similar to its embedding.

    ``tokens`` [B, P, D] are compared with the embeddings ``rows`` [B, D] by their cosines. The
    result is float32 unit tokens [B, count, D], the most similar first, of equal ones the earlier.
    Only the first ``lengths[i]`` tokens of item i count (None: all).
    """
    device = tokens.device
    items, places, dim = tokens.shape
    tokens = F.normalize(tokens.float(), dim=-1)
    if lengths is None:
        lengths = torch.full((items,), places)
    lengths = lengths.to(device)[:, None]
    unit_rows = F.normalize(rows.float(), dim=-1)
    cosines = (tokens @ unit_rows[..., None])[..., 0]
    is_hidden = torch.arange(places, device=device) >= lengths
    cosines = cosines.masked_fill(is_hidden, -torch.inf)
    order = cosines.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(count, device=device).minimum(lengths - 1)
    best = order.gather(1, ranks)
    index = best[..., None].expand(-1, -1, dim)
    selected = tokens.gather(1, index)
    has_length = selected.norm(dim=-1) > 0.5  # also False for NaN
    is_whole = has_length.all(dim=1)
    return selected.masked_fill(~is_whole[:, None, None], torch.nan)


@torch.inference_mode()
def _image_tokens(encoder: Encoder, count: int, pixels: Tensor) -> Tensor:
    model = encoder.image_model
    if isinstance(model, BorrowedTower):
        model = model.teacher
    pixels = pixels.to(encoder.device, non_blocking=True).contiguous(memory_format=encoder._layout)
    with computing(encoder.precision, encoder.device):
        outputs = intermediate.image(model, pixels)
        patches = projected(model.visual, outputs.patches)
    return chosen(patches, outputs.rows, count)


@torch.inference_mode()
def _text_tokens(encoder: Encoder, count: int, tokens: Tensor) -> Tensor:
    lengths = encoder.lengths_read(tokens)
    longest = int(lengths.max())
    tokens = tokens[:, :longest]
    parts = intermediate.text_parts(encoder.text_model)
    with computing(encoder.precision, encoder.device):
        tokens = tokens.to(encoder.device, non_blocking=True)
        outputs = intermediate.text(encoder.text_model, tokens)
        words = intermediate.projected(parts.text_projection, outputs.states)
    return chosen(words, outputs.rows, count, lengths)


def projected(visual: nn.Module, patches: Tensor) -> Tensor:
    """Return patches [B, P, W] of an image tower in its joint space, [B, P, D].

    Raises ModelError for a tower that does not project its patches.
    """
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return intermediate.projected(visual.proj, visual.ln_post(patches))
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool.c_proj(visual.attnpool.v_proj(patches))
    if isinstance(visual, TimmModel):
        return _through_head(visual, patches)
    raise ModelError(
        f"{type(visual).__name__}: its patches have no projection of their own. Fix: name another"
        " teacher for --tokens"
    )


def _through_head(visual: TimmModel, patches: Tensor) -> Tensor:
    """Return patches [B, P, W] behind the head of a timm tower, one by one: [B, P, D]."""
    trunk = visual.trunk
    batch, places, width = patches.shape
    x = patches.reshape(batch * places, width)
    layout = _layout(trunk)
    if layout == "NCHW":
        x = x[:, :, None, None]
    elif layout == "NHWC":
        x = x[:, None, None]
    else:
        # the patch takes the place of the class tokens, and comes once more behind them
        x = x[:, None].expand(-1, trunk.num_prefix_tokens + 1, -1)
    rows = visual.head(trunk.forward_head(x))
    return rows.view(batch, places, -1)


def _layout(trunk: nn.Module) -> str:
    """Return the order of axes of a timm trunk's features: "NCHW", "NHWC" or "NLC"."""
    layout = getattr(trunk, "output_fmt", None)
    if layout:
        return layout
    return "NLC" if hasattr(trunk, "num_prefix_tokens") else "NCHW"
