"""Towers that stand alone; their weights have open_clip's names (``visual.*``, ``text.*``)."""

from __future__ import annotations

from torch import Tensor, nn


class ImageTower(nn.Module):
    """An image tower without a text tower."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return rows [B, D], not normalised, of pixels [B, 3, S, S]."""
        return self.visual(pixels)


class TextTower(nn.Module):
    """A text tower without an image tower."""

    def __init__(self, text: nn.Module):
        super().__init__()
        self.text = text

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return rows [N, D], not normalised, of tokens [N, L]."""
        return self.text(tokens)
