"""Make an encoder of a model that is loaded: its card, its tokenizer, and where it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dimefm.cache import EncoderCard
from dimefm.errors import ModelError
from dimefm.models import open_clip, published
from dimefm.models.encoder import Encoder, weights_sha256
from dimefm.models.hf.tokenizer import FolderTokenizer
from dimefm.models.timm_teacher import LOGIT_SCALE, ImageTeacher, NoText


@dataclass(frozen=True)
class Compute:
    """Where an encoder computes, and in which precision."""

    device: torch.device
    precision: str


class WrongTeacher(ModelError):
    """A run's teacher has other weights than those that the run was distilled from."""


@dataclass(frozen=True)
class Expected:
    """What is known of a teacher before it is loaded.

    ``card`` is its card in the record of ``run``, and ``loading`` are the run folders that are
    being loaded and need it.
    """

    card: EncoderCard
    run: Path
    loading: tuple[Path, ...]

    def check(self, spec: str, weights: str, dim: int) -> None:
        """Raise ModelError when weights with this digest, of ``dim`` dimensions, are another's."""
        if self.card.weights_sha256 not in (None, weights):
            raise WrongTeacher(
                f"{spec}: weights {weights[:12]}, but {self.run} was distilled from weights"
                f" {self.card.weights_sha256[:12]}. Fix: name the right teacher with --text-model"
            )
        if dim != self.card.dim:
            raise WrongTeacher(
                f"{spec}: {dim} dimensions, {self.run} has {self.card.dim}. Fix: name its teacher"
                " with --text-model"
            )


def assemble(
    name: str,
    model: nn.Module,
    config: dict | None,
    make_tokenizer: Callable[[], Callable],
    compute: Compute,
    preparation: published.Preparation | None = None,
    expected: Expected | None = None,
) -> Encoder:
    """Return the encoder of a whole CLIP; without a ``preparation`` the model states its own.

    The tokenizer is made when the weights are known to be those ``expected``.
    """
    digest = weights_sha256(model)
    dim = _dim(model, name)
    if expected is not None:
        expected.check(name, digest, dim)
    tokenizer = make_tokenizer()
    bias = getattr(model, "logit_bias", None)
    preprocess = getattr(model, "preprocess", None) or open_clip.preprocess_of(model)
    if preparation is not None:
        preprocess = {**preparation.preprocess, "size": preprocess["size"]}
    card = EncoderCard(
        name=name,
        weights_sha256=digest,
        dim=dim,
        logit_scale=float(model.logit_scale.detach().float().exp()),
        logit_bias=None if bias is None else float(bias.detach()),
        preprocess=preprocess,
        tokenizer=tokenizer_name(tokenizer),
        context_length=getattr(tokenizer, "context_length", None),
        activation=getattr(model, "activation", None) or open_clip.activation_of(model),
    )
    model = model.to(compute.device).eval().requires_grad_(False)
    return Encoder(
        card=card,
        image_model=model,
        text_model=model,
        preprocess=open_clip.transform_of(preprocess),
        tokenizer=tokenizer,
        device=compute.device,
        precision=compute.precision,
        notes=published.notes_on(preprocess, preparation),
        image_config=config,
        text_config=config,
    )


def assemble_images(
    name: str,
    model: ImageTeacher,
    compute: Compute,
    preparation: published.Preparation | None = None,
    expected: Expected | None = None,
) -> Encoder:
    """Return the encoder of an image model without a text tower.

    Without a ``preparation`` the model states its own.
    """
    preprocess = model.preprocess if preparation is None else preparation.preprocess
    digest = weights_sha256(model)
    dim = _image_dim(model, preprocess["size"], name)
    if expected is not None:
        expected.check(name, digest, dim)
    card = EncoderCard(
        name=name,
        weights_sha256=digest,
        dim=dim,
        logit_scale=LOGIT_SCALE,
        preprocess=preprocess,
        activation=model.activation,
    )
    no_text = NoText(name)
    model = model.to(compute.device).eval().requires_grad_(False)
    return Encoder(
        card=card,
        image_model=model,
        text_model=no_text,
        preprocess=open_clip.transform_of(preprocess),
        tokenizer=no_text,
        device=compute.device,
        precision=compute.precision,
        notes=published.notes_on(preprocess, preparation),
    )


def without_text(card: EncoderCard, compute: Compute) -> Encoder:
    """Return what stands for a teacher without a text tower next to a student's image tower.

    The teacher itself is not loaded: a student needs none of its towers.
    """
    no_text = NoText(card.name)
    return Encoder(
        card=card,
        image_model=no_text,
        text_model=no_text,
        preprocess=no_text,
        tokenizer=no_text,
        device=compute.device,
        precision=compute.precision,
    )


@torch.inference_mode()
def _image_dim(model: ImageTeacher, size: int | list[int], name: str) -> int:
    """Return the dimension of the rows; raise ModelError when an image does not become one."""
    height, width = (size, size) if isinstance(size, int) else size
    try:
        shape = list(model.encode_image(torch.zeros(1, 3, height, width)).shape)
    except Exception as error:  # timm raises whatever a size that is not its own leads to
        raise ModelError(
            f"{name}: cannot encode an image of {height} x {width} pixels:"
            f" {open_clip.reason_of(error)}. Fix: name another model"
        ) from error
    if len(shape) != 2:
        raise ModelError(
            f"{name}: an image becomes {shape[1:]} numbers, expected one row. Fix: name another"
            " model"
        )
    return shape[1]


@torch.inference_mode()
def _dim(model: nn.Module, name: str) -> int:
    """Return the dimension of the embeddings; raise ModelError when a text cannot be encoded."""
    try:
        tokens = torch.zeros(1, model.context_length, dtype=torch.long)
        shape = list(model.encode_text(tokens).shape)
    except Exception as error:  # an odd config may build a model that does not run
        reason = open_clip.reason_of(error)
        raise ModelError(
            f"{name}: cannot encode a text: {reason}. Fix: correct its config"
        ) from error
    if len(shape) != 2:
        raise ModelError(f"{name}: a text becomes {shape} numbers. Fix: correct its config")
    return shape[1]


def tokenizer_name(tokenizer: Callable) -> str:
    """Return the class of a tokenizer, with its name or the number of its tokens, for a card."""
    if isinstance(tokenizer, FolderTokenizer):
        return tokenizer.name
    inner = getattr(getattr(tokenizer, "tokenizer", None), "name_or_path", "")
    size = getattr(tokenizer, "vocab_size", None) or len(getattr(tokenizer, "encoder", ()) or ())
    return f"{type(tokenizer).__name__}({inner or size})"
