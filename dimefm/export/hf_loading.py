"""Load an export with transformers, as its user does, for the gate."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

from dimefm.cache import EncoderCard
from dimefm.errors import ModelError
from dimefm.models import open_clip
from dimefm.models.encoder import Encoder
from dimefm.models.offline import offline


class ImageFeatures(nn.Module):
    """The image features of a model of transformers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.visual = model.vision_model

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return rows [B, D], not normalized, of pixels [B, 3, S, S]."""
        return _rows(self.model.get_image_features(pixel_values=pixels))


class TextFeatures(nn.Module):
    """The text features of a model of transformers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return rows [N, D], not normalized, of tokens [N, L]."""
        return _rows(self.model.get_text_features(input_ids=tokens))


class Tokens:
    """Tokens [N, L] of texts by a tokenizer of transformers, cut and filled to the context."""

    def __init__(self, tokenizer: Any, context_length: int):
        self._tokenizer = tokenizer
        self.context_length = context_length

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the tokens int64 [N, L] of texts."""
        filled = self._tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        return filled["input_ids"]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text without its start and end, at most a context of them."""
        limited = self._tokenizer(
            text, truncation=True, max_length=self.context_length, add_special_tokens=False
        )
        return limited["input_ids"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars and the notes of transformers for the block's time."""
    level = logging.get_verbosity()
    has_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def _rows(output: Any) -> Tensor:
    """Return the features; newer releases wrap them."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load(folder: Path, card: EncoderCard) -> Encoder:
    """Return an export as an encoder; raise ModelError when transformers does not load it."""
    try:
        with offline(), _quiet():
            model, report = AutoModel.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever a class's code raises
        raise ModelError(
            f"transformers does not load the export: {open_clip.reason_of(error)}. Fix: use --to"
            " open_clip"
        ) from error
    faults = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if faults:
        raise ModelError(
            f"transformers misses or does not know weights of the export, e.g. {faults[0]}. Fix:"
            " use another release of transformers, or --to open_clip"
        )
    model = model.eval().requires_grad_(False)
    return Encoder(
        card=dataclasses.replace(card, name=str(folder)),
        image_model=ImageFeatures(model),
        text_model=TextFeatures(model),
        preprocess=Pixels(processor.image_processor),
        tokenizer=Tokens(processor.tokenizer, card.context_length),
        device=torch.device("cpu"),
    )


class Pixels:
    """Pixels [3, S, S] of images by an image processor of transformers."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Any) -> Tensor:
        """Return the pixels of a PIL image."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]
