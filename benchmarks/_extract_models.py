"""The encoders of the extraction benchmarks, all with random weights: the arithmetic does not
depend on them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dimefm.models import open_clip
from dimefm.models.encoder import Encoder
from dimefm.models.inference.precision import chosen
from dimefm.models.loading import load_encoder

TINY = "ResNet-mini-64/random:0"
LIGHT = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "mobilenetv3_small_050",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "",
        "image_size": 224,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
LIGHT_PREPROCESS = open_clip.default_preprocess(224)


def eager(arch: str) -> Encoder:
    """Return an open_clip architecture."""
    return load_encoder(f"{arch}/random:0", "cpu")


def automatic(encoder: Encoder) -> Encoder:
    """Return the encoder in the precision that ``--precision auto`` takes on this machine."""
    return dataclasses.replace(encoder, precision=chosen(encoder.device)[0])


def compiled(encoder: Encoder, batch: int) -> Encoder:
    """Return the encoder with its image tower compiled, as ``--compile`` has it.

    It is compiled when it encodes the first batch, which is a round that is not counted.
    """
    return encoder.compiled(batch)


def light(folder: Path) -> Encoder:
    """Return a mobile-size image tower at 224 pixels, saved to ``folder`` as open_clip does and
    loaded from there.
    """
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.from_config(LIGHT)
    config = {"model_cfg": LIGHT, "preprocess_cfg": LIGHT_PREPROCESS}
    (folder / open_clip.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return load_encoder(str(folder), "cpu")


class Constant(nn.Module):
    """An image tower that looks at nothing."""

    def __init__(self, dim: int):
        super().__init__()
        self.visual, self.dim = nn.Identity(), dim

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return rows of ones [B, D]."""
        return torch.ones(len(pixels), self.dim)


def null(encoder: Encoder) -> Encoder:
    """Return the encoder with a constant in place of its image tower: what is left is reading,
    decoding and writing.
    """
    return dataclasses.replace(encoder, image_model=Constant(encoder.card.dim))
