"""Part of each image is hidden from a student while it learns, as CLIP-KD's masked feature
distillation (MFD) means it.

A vision transformer does without the tokens of hidden patches, as masked autoencoders do, and is
the faster for it. Any other tower sees hidden blocks in the mean colour. Weights, their names and
evaluation stay as they are.

Source: CLIP-KD (CVPR 2024), released src/open_clip/transformer.py:303-377, whose model then throws
the masked rows away (model.py:192-195). Deviations: what is hidden is drawn on the CPU, so alike on
every machine; and a student of any family can be masked, there only OpenAI's transformer.

Knows where transformers of open_clip and timm drop tokens; written against open_clip_torch 3.x and
timm 1.x.
"""

from __future__ import annotations

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models import eva, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = 14
"""Blocks along a side of an image whose tower has no tokens to drop: patches of 16 at 224
pixels.
"""


def hide(model: nn.Module, share: float) -> nn.Module:
    """Hide ``share`` (0 to below 1; 0 hides nothing) of each image from ``model.visual`` in
    training mode.

    Returns what its prepared pixels [B, 3, S, S] go through first: :class:`Blocks`, or for a
    transformer, which leaves out patches by itself from now on, nothing. Each pass draws anew from
    torch's generator on the CPU.
    """
    if not share:
        return nn.Identity()
    visual = model.visual
    trunk = visual.trunk if isinstance(visual, TimmModel) else None
    if isinstance(visual, VisionTransformer):
        visual.patch_dropout = PatchDropout(share, 1)
    elif isinstance(trunk, vision_transformer.VisionTransformer):
        trunk.patch_drop = PatchDropout(share, trunk.num_prefix_tokens)
    elif isinstance(trunk, eva.Eva):
        trunk.patch_drop = PatchDropout(share, trunk.num_prefix_tokens, told=True)
    else:
        return Blocks(share)
    return nn.Identity()


def kept(noise: Tensor, share: float) -> Tensor:
    """Return the places [B, K] of the K lowest numbers in each row of ``noise`` [B, L], the lowest
    first.

    K is int(L (1 - share)), but at least 1.
    """
    count = max(1, int(noise.shape[1] * (1 - share)))
    return noise.argsort(dim=1, stable=True)[:, :count]


def drawn(images: int, places: int, share: float, device: torch.device) -> Tensor:
    """Return which of ``places`` each of ``images`` shows, drawn at random: [B, K] as of
    :func:`kept`, on ``device``.
    """
    return kept(torch.rand(images, places).to(device), share)


class PatchDropout(nn.Module):
    """Leaves out tokens of patches in training mode; ``prefix`` tokens in front of them (the class
    token) stay.

    Gives tokens [B, P + K, W] of [B, P + L, W]; if ``told``, with them the places [B, K] that are
    left, None for all.
    """

    def __init__(self, share: float, prefix: int, told: bool = False):
        super().__init__()
        self.share, self.prefix, self.told = share, prefix, told

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Return the tokens that are left, see the class."""
        places = None
        if self.training:
            first, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
            images, count, width = patches.shape
            places = drawn(images, count, self.share, tokens.device)
            left = patches.gather(1, places[..., None].expand(-1, -1, width))
            tokens = torch.cat([first, left], dim=1)
        return (tokens, places) if self.told else tokens


class Blocks(nn.Module):
    """Sets blocks of normalised pixels [B, 3, S, S] to 0, the mean colour, in training mode."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pixels that the tower sees."""
        if not self.training:
            return pixels
        count, size = len(pixels), pixels.shape[-1]
        side = min(BLOCKS, size)
        places = drawn(count, side**2, self.share, pixels.device)
        seen = pixels.new_zeros(count, side**2).scatter_(1, places, 1).view(count, 1, side, side)
        return pixels * F.interpolate(seen, size=(size, size), mode="nearest")
