"""Hide a part of each image from a student in training: CLIP-KD's masked feature distillation.

A vision transformer drops the tokens of hidden patches, as masked autoencoders do, and is faster
without them. Any other tower sees hidden blocks in the mean color. Weights, their names and
evaluation stay as they are.

Source: CLIP-KD (CVPR 2024), released src/open_clip/transformer.py:303-377, whose model then throws
the masked rows away (model.py:192-195). Deviations: the hidden patches are drawn on the CPU, so
they are the same on every machine; and a student of any family can be masked, not only OpenAI's
transformer.

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
"""Blocks along a side of an image whose tower has no tokens to drop: 16 pixels each at 224."""


def hide(model: nn.Module, share: float) -> nn.Module:
    """Hide ``share`` of each image from ``model.visual`` in training mode, 0 <= ``share`` < 1.

    Returns the module that prepared pixels [B, 3, S, S] go through first: :class:`Blocks`, or the
    identity for a transformer, which drops patches itself from now on. Each pass draws again from
    torch's generator on the CPU.
    """
    if not share:
        return nn.Identity()
    visual = model.visual
    if isinstance(visual, VisionTransformer):
        visual.patch_dropout = PatchDropout(share, prefix=1)
        return nn.Identity()
    trunk = visual.trunk if isinstance(visual, TimmModel) else None
    if isinstance(trunk, vision_transformer.VisionTransformer):
        trunk.patch_drop = PatchDropout(share, trunk.num_prefix_tokens)
        return nn.Identity()
    if isinstance(trunk, eva.Eva):
        trunk.patch_drop = PatchDropout(share, trunk.num_prefix_tokens, returns_places=True)
        return nn.Identity()
    return Blocks(share)


def kept(noise: Tensor, share: float) -> Tensor:
    """Return the places [B, K] of the K lowest numbers in each row of ``noise`` [B, L].

    The lowest comes first. K is int(L (1 - share)), but at least 1.
    """
    _, places = noise.shape
    count = int(places * (1 - share))
    count = max(1, count)
    order = noise.argsort(dim=1, stable=True)
    return order[:, :count]


def drawn(
    images: int,
    places: int,
    share: float,
    device: torch.device,
) -> Tensor:
    """Return the places [B, K] that each of B images shows, drawn at random, on ``device``.

    K is the number of :func:`kept` places.
    """
    noise = torch.rand(images, places)
    return kept(noise.to(device), share)


class PatchDropout(nn.Module):
    """Drops tokens of patches in training mode, but not the first ``prefix`` (class) tokens.

    Returns tokens [B, P + K, W] of [B, P + L, W]; with ``returns_places`` also the places [B, K] of
    the tokens that are left, None when all are.
    """

    def __init__(self, share: float, prefix: int, returns_places: bool = False):
        super().__init__()
        self.share = share
        self.prefix = prefix
        self.returns_places = returns_places

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Return the tokens that are left, see the class."""
        places: Tensor | None = None
        if self.training:
            tokens, places = self._dropped(tokens)
        if self.returns_places:
            return tokens, places
        return tokens

    def _dropped(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that are left and their places among the patches."""
        prefix = tokens[:, : self.prefix]
        patches = tokens[:, self.prefix :]
        images, count, width = patches.shape
        places = drawn(images, count, self.share, tokens.device)
        index = places[..., None].expand(-1, -1, width)
        left = patches.gather(1, index)
        return torch.cat([prefix, left], dim=1), places


class Blocks(nn.Module):
    """Sets blocks of normalized pixels [B, 3, S, S] to 0, the mean color, in training mode."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pixels that the tower sees."""
        if not self.training:
            return pixels
        images = len(pixels)
        size = pixels.shape[-1]
        side = min(BLOCKS, size)
        blocks = side**2
        places = drawn(images, blocks, self.share, pixels.device)
        seen = pixels.new_zeros(images, blocks)
        seen.scatter_(1, places, 1)
        mask = F.interpolate(
            seen.view(images, 1, side, side),
            size=(size, size),
            mode="nearest",
        )
        return pixels * mask
