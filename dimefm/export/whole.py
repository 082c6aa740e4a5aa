"""WholeClip: both towers of a model and all that goes with them, as they leave for a program.

The towers may come from two models: a student's image tower and the text tower of its teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models.encoder import BorrowedTower, Encoder
from dimefm.models.open_clip import activation_of

SCALARS = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class WholeClip:
    """A CLIP to be exported.

    ``image`` has ``encode_image(pixels) -> [B, D]`` and ``text`` has ``encode_text(tokens) -> [N,
    D]``; neither normalizes. ``visual`` and ``text_tower`` are the bare modules. ``model_cfg`` is
    an open_clip model config of both towers, None where one of them was not built by open_clip, and
    ``image_cfg`` one of the image tower alone.
    ``preprocess`` is open_clip's preprocessing as JSON values. ``logit_scale`` is the factor on
    cosines itself, not its logarithm. ``encoder`` is what the model was loaded as.
    """

    name: str
    encoder: Encoder
    image: nn.Module
    text: nn.Module
    model_cfg: dict | None
    image_cfg: dict | None
    preprocess: dict
    tokenizer: Callable
    context_length: int | None
    logit_scale: float
    logit_bias: float | None

    @staticmethod
    def from_encoder(encoder: Encoder) -> WholeClip:
        """Return both towers of an encoder; a borrowed tower is loaded.

        Raises ModelError when a borrowed tower cannot be loaded, or its preprocessing is unknown.
        """
        encoder.require_text()
        image = encoder.image_model
        image_config = encoder.image_config
        if isinstance(image, BorrowedTower):
            teacher = image.encoder
            image = teacher.image_model
            image_config = teacher.image_config
        card = encoder.card
        if encoder.text_model is None or encoder.tokenizer is None:
            raise ModelError(
                f"{card.name}: has no text tower, and an export is a whole CLIP. Fix: export a"
                " student of a teacher with both towers"
            )
        return WholeClip(
            name=card.name,
            encoder=encoder,
            image=image,
            text=encoder.text_model,
            model_cfg=_joined(image, image_config, encoder, card.dim),
            image_cfg=image_config,
            preprocess=encoder.image_preprocess,
            tokenizer=encoder.tokenizer,
            context_length=card.context_length,
            logit_scale=card.logit_scale,
            logit_bias=card.logit_bias,
        )

    @property
    def visual(self) -> Any:
        """The bare image tower."""
        return self.image.visual

    @property
    def text_tower(self) -> Any:
        """The bare text tower; a CLIP that keeps its text tower's parts itself is one."""
        return getattr(self.text, "text", self.text)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.encoder.card.dim

    def visual_state(self) -> dict[str, Tensor]:
        """Return the tensors of the image tower by their names in it."""
        return dict(self.visual.state_dict())

    def text_state(self) -> dict[str, Tensor]:
        """Return the tensors of the text tower by their names in open_clip's ``TextTransformer``.

        A text tower of another kind has its own names.
        """
        tensors = {}
        for name, tensor in self.text_tower.state_dict().items():
            if not name.startswith("visual.") and name not in SCALARS:
                tensors[name] = tensor
        return tensors

    def scalars(self) -> dict[str, Tensor]:
        """Return the logarithm of the factor on cosines and, for a SigLIP, the bias."""
        scalars = {"logit_scale": torch.tensor(math.log(self.logit_scale))}
        if self.logit_bias is not None:
            scalars["logit_bias"] = torch.tensor(float(self.logit_bias))
        return scalars

    def activations(self) -> tuple[str, str]:
        """Return the activation of each tower, "" for a tower that open_clip's setting misses.

        The setting ``quick_gelu`` is that of both transformers of open_clip. A tower of timm, a
        ResNet and a text tower of Hugging Face do not look at it.
        """
        image = text = ""
        if isinstance(self.visual, VisionTransformer):
            image = activation_of(self.visual)
        if isinstance(self.text, open_clip.CLIP):
            text = activation_of(self.text.transformer)
        elif isinstance(self.text_tower, TextTransformer):
            text = activation_of(self.text_tower)
        return image, text

    @property
    def has_timm_tower(self) -> bool:
        """Tell whether the image tower is one of timm."""
        return isinstance(self.visual, TimmModel)


def _joined(
    image: nn.Module, image_config: dict | None, encoder: Encoder, dim: int
) -> dict[str, Any] | None:
    """Return one open_clip config for both towers, None where a tower has none.

    Two transformers of different activations get the text tower's; see ``activations``.
    """
    text_config = encoder.text_config
    if image_config is None or text_config is None:
        return None
    if image is encoder.text_model:
        return copy.deepcopy(text_config)
    config: dict[str, Any] = {
        "embed_dim": dim,
        "vision_cfg": copy.deepcopy(image_config["vision_cfg"]),
        "text_cfg": copy.deepcopy(text_config["text_cfg"]),
    }
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    is_quick = activation_of(encoder.text_model) == "quick_gelu"
    if is_quick or activation_of(image) == "quick_gelu":
        config["quick_gelu"] = True
    if not isinstance(encoder.text_model, open_clip.CLIP):
        config["custom_text"] = True
    if encoder.card.logit_bias is not None:
        config["init_logit_bias"] = float(encoder.card.logit_bias)
    return config
