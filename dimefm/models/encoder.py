"""Encoder: images and sentences to unit rows. Teacher and student are the same type.

:func:`~dimefm.models.loading.load_encoder` loads one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.cache import EncoderCard
from dimefm.errors import ModelError
from dimefm.models import fast_tokenizer, trimmed_text
from dimefm.models.hf.tokenizer import FolderTokenizer
from dimefm.models.inference.compiled import CPU_ROWS, Compiled
from dimefm.models.inference.micro_batches import Pieces, fitting_batch_size
from dimefm.models.inference.precision import computing
from dimefm.models.timm_teacher import NoText

MOVED = {"load_encoder": "dimefm.models.loading"}
"""Names that programs written for an earlier layout import from here, and where they are now."""


def __getattr__(name: str) -> Any:
    """Return a name that has moved."""
    if name in MOVED:
        return getattr(importlib.import_module(MOVED[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@dataclass(repr=False)
class Encoder:
    """Two towers behind one face.

    ``encode_image`` takes float pixels [B, 3, S, S] as ``preprocess`` makes them, ``encode_text``
    tokens [N, L]; both return float32 unit rows [.., D]; when memory runs out, in smaller pieces.
    ``image_parameters`` and ``text_parameters`` count the weights of each tower. ``notes`` are
    lines for the user on how it was loaded. ``image_config`` and ``text_config`` are the open_clip
    model configs that the towers were built from, None where a tower is of another kind, or is
    loaded on first use.
    """

    card: EncoderCard
    image_model: nn.Module
    text_model: nn.Module
    preprocess: Callable
    tokenizer: Any
    device: torch.device
    precision: str = "fp32"
    image_pieces: Pieces = field(default_factory=Pieces)
    text_pieces: Pieces = field(default_factory=Pieces)
    notes: tuple[str, ...] = ()
    image_config: dict | None = None
    text_config: dict | None = None

    def __repr__(self) -> str:
        """Return name, dimension and device: the modules in full would be hundreds of lines."""
        return f"Encoder({self.card.name!r}, dim={self.card.dim}, device={str(self.device)!r})"

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return float32 unit rows [B, D] of pixels [B, 3, S, S]; raise ModelError when there is no
        memory for one.
        """
        return self.image_pieces.encode(self._image_rows, pixels)

    @torch.inference_mode()
    def _image_rows(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, non_blocking=True).contiguous(memory_format=self._layout)
        with computing(self.precision, self.device):
            rows = self.image_model.encode_image(pixels)
        return F.normalize(rows.float(), dim=-1)

    def compiled(self, batch_size: int) -> Encoder:
        """Return this encoder with a compiled image tower that runs ``batch_size`` images at once,
        on a CPU at most 32.

        It is compiled when the first image is encoded, a quarter of a minute for a ViT-B-32; that
        raises ModelError when it cannot be. Its rows differ from those of the eager tower in their
        last bits.
        """
        tower = (
            self.image_model.teacher
            if isinstance(self.image_model, BorrowedTower)
            else self.image_model
        )
        rows = min(batch_size, CPU_ROWS) if self.device.type == "cpu" else batch_size
        return dataclasses.replace(
            self, image_model=Compiled(tower), image_pieces=Pieces(rows, full=True)
        )

    @functools.cached_property
    def fitting_batch_size(self) -> int:
        """How many images to encode at once on this machine, measured in a few seconds when it is
        first asked for.
        """
        return fitting_batch_size(
            self._image_rows, torch.zeros(3, *self.image_size), self.device.type
        )

    @property
    def image_preprocess(self) -> dict:
        """How images are prepared for the image tower; raise ModelError where that is not known."""
        if not self.card.preprocess:
            raise ModelError(
                f"{self.card.name}: how its teacher prepares images is not known, since its"
                " features were adopted without --preprocess. Fix: encode images with the teacher"
            )
        return self.card.preprocess

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels that the image tower takes."""
        size = self.image_preprocess["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return float32 unit rows [N, D] of tokens [N, L]; where padding changes nothing, it is
        not computed.

        Raises ModelError when there is no memory for one sentence.
        """
        return self.text_pieces.encode(self._text_rows, tokens)

    @torch.inference_mode()
    def _text_rows(self, tokens: Tensor) -> Tensor:
        tower = self._trimmed or self.text_model
        if len(tokens):
            tokens = tokens[:, : int(self.lengths_read(tokens).max())]
        with computing(self.precision, self.device):
            rows = tower.encode_text(tokens.to(self.device, non_blocking=True))
        return F.normalize(rows.float(), dim=-1)

    def lengths_read(self, tokens: Tensor) -> Tensor:
        """Return how many places of each row of tokens [N, L] ``encode_text`` computes if it is
        alone: int64 [N].
        """
        if self._trimmed is None:
            return torch.full((len(tokens),), tokens.shape[1])
        return self._trimmed.lengths(tokens)

    @functools.cached_property
    def _layout(self) -> torch.memory_format:
        """Channels last for a tower of convolutions, which is quicker; not for a ViT and its one
        convolution.
        """
        convolutions = sum(
            isinstance(module, nn.Conv2d) for module in self.image_model.visual.modules()
        )
        return torch.channels_last if convolutions > 1 else torch.contiguous_format

    @functools.cached_property
    def _trimmed(self) -> trimmed_text.Trimmed | None:
        return trimmed_text.trimmed(self.text_model)

    @functools.cached_property
    def _words(self) -> fast_tokenizer.CachedTokenizer | FolderTokenizer | None:
        if isinstance(self.tokenizer, FolderTokenizer):
            return self.tokenizer
        return fast_tokenizer.cached_tokenizer(self.tokenizer)

    def tokenize(self, sentences: list[str]) -> tuple[Tensor, list[int]]:
        """Return (tokens [N, L], untruncated lengths [N]); a length above L means that the sentence
        was cut.
        """
        if self._words is not None:
            return self._words.tokenize(sentences)
        tokens = self.tokenizer(sentences)
        lengths = (tokens != 0).sum(1).tolist()
        full = (
            (tokens[:, -1] != 0).nonzero().flatten().tolist()
        )  # by the last place: id 0 is also the token of "!"
        for i in full:
            lengths[i] = fast_tokenizer.length_of(self.tokenizer, sentences[i])
        return tokens, lengths

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower; image models of timm have none."""
        return not isinstance(self.text_model, NoText)

    def require_text(self) -> None:
        """Raise ModelError when there is no text tower."""
        if isinstance(self.text_model, NoText):
            raise self.text_model.refusal()

    @property
    def image_parameters(self) -> int:
        """Number of weights of the image tower, its projection included."""
        return sum(p.numel() for p in self.image_model.visual.parameters())

    @property
    def text_parameters(self) -> int:
        """Number of weights of the text tower, its embedding and projection included."""
        visual = (
            {id(p) for p in self.text_model.visual.parameters()}
            if hasattr(self.text_model, "visual")
            else set()
        )
        return sum(p.numel() for p in self.text_model.parameters() if id(p) not in visual)


def weights_sha256(*modules: nn.Module) -> str:
    """Return the digest of all tensors of the modules: name, dtype, shape and bytes, in order of
    name.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class BorrowedTower(nn.Module):
    """The image tower of a teacher that is loaded on first use: sentences alone do not need it."""

    def __init__(self, load: Callable[[], Encoder]):
        super().__init__()
        self._load = load

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The teacher."""
        return self._load()

    @property
    def teacher(self) -> nn.Module:
        """The teacher's model."""
        return self.encoder.image_model

    @property
    def visual(self) -> nn.Module:
        """The teacher's image tower."""
        return self.teacher.visual

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the teacher's rows [B, D], not normalised, of pixels [B, 3, S, S]."""
        return self.teacher.encode_image(pixels)
