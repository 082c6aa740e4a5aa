"""A model of transformers with the face of open_clip's models."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from dimefm.models.hf.config import FolderConfig

QUICK_GELU = "quick_gelu"


class HfClip(nn.Module):
    """A whole CLIP of transformers: ``encode_image`` and ``encode_text`` as those of open_clip.

    ``preprocess`` says how images are prepared for it, and ``pad`` is the token behind the end of a
    text.
    """

    def __init__(self, model: nn.Module, config: FolderConfig, preprocess: dict):
        super().__init__()
        self.model = model
        self.config = config
        self.preprocess = preprocess
        self.pad: int | None = None
        self.context_length = 1

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return rows [B, D], not normalised, of pixels [B, 3, S, S]."""
        return self.visual(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return rows [N, D], not normalised, of tokens [N, L]."""
        mask = None
        if self.config.masks_padding:
            mask = (tokens != self.pad).long()
            mask[:, 0] = 1  # of a text without tokens, too, there is something to attend to
        return _rows(self.model.get_text_features(input_ids=tokens, attention_mask=mask))

    @functools.cached_property
    def visual(self) -> ImageSide:
        """The image tower, its projection included."""
        return ImageSide(self.model, self.config)

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the factor on cosines."""
        scale = getattr(self.model, "logit_scale", None)
        if scale is None:  # ALIGN divides by a temperature
            return -self.model.temperature.detach().float().log()
        return scale.detach().reshape(())

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to scaled cosines; None where nothing is."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.detach().reshape(())

    @property
    def activation(self) -> str:
        """``"quick_gelu"`` when any tower uses that activation, else ``"standard"``."""
        towers = (self.config.vision, self.config.text)
        names = [getattr(tower, "hidden_act", "") for tower in towers]
        return QUICK_GELU if QUICK_GELU in names else "standard"


class ImageSide(nn.Module):
    """The parts of a model that images go through."""

    def __init__(self, model: nn.Module, config: FolderConfig):
        super().__init__()
        names = config.family.image_parts
        self.parts = nn.ModuleDict({name: getattr(model, name) for name in names})
        self._model = [model]  # in a list, or it would become a part of this module
        self._patch_size = None
        if config.model_type == "siglip2":
            self._patch_size = config.vision.patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if self._patch_size is not None:
            inputs = _patches(pixels, self._patch_size)
        return _rows(self._model[0].get_image_features(**inputs))


def _patches(pixels: Tensor, side: int) -> dict[str, Tensor]:
    """Return what a model of patches of any number takes: all patches of images of one size."""
    count, channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    pixels = pixels[:, :, : rows * side, : columns * side]
    patches = pixels.reshape(count, channels, rows, side, columns, side)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)
    shape = torch.tensor([[rows, columns]], device=pixels.device).expand(count, 2)
    mask = torch.ones(count, rows * columns, dtype=torch.long, device=pixels.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shape}


def _rows(features: Any) -> Tensor:
    """Return the rows that version 4 of transformers returns alone, version 5 among others."""
    return features if isinstance(features, Tensor) else features.pooler_output
