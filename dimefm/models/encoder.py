"""Encoder: images and sentences to unit rows. Teacher and student are the same type.

What ``load_encoder`` understands:

==========================  ========================================================================
``ARCH/PRETRAINED``         an open_clip architecture and tag, e.g. ``ViT-L-14/openai``
                            (downloaded by open_clip)
``ARCH/path/to/weights``    an architecture and a local ``.pt`` or ``.safetensors`` file (OpenAI's
                            own weights need the ``-quickgelu`` architectures; with a tag the
                            activation is chosen by itself)
``FILE``                    such a file with ``open_clip_config.json`` next to it
``FOLDER``                  an open_clip folder (``open_clip_config.json`` and weights), or a run
                            folder of dimefm
``ARCH/random:SEED``        random weights, for tests and speed; the manifest says so
==========================  ========================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.cache import EncoderCard
from dimefm.cache.manifest import differences
from dimefm.errors import ModelError
from dimefm.models import fast_tokenizer, open_clip, trimmed_text
from dimefm.models.inference.compiled import CPU_ROWS, Compiled
from dimefm.models.inference.micro_batches import Pieces, fitting_batch_size
from dimefm.models.inference.precision import PRECISIONS, computing
from dimefm.models.towers import ImageTower, TextTower
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.runtime.devices import pick_device


@dataclass
class Encoder:
    """Two towers behind one face.

    ``encode_image`` takes float pixels [B, 3, S, S] as ``preprocess`` makes them, ``encode_text``
    tokens [N, L]; both return float32 unit rows [.., D]; when memory runs out, in smaller pieces.
    ``image_parameters`` and ``text_parameters`` count the weights of each tower.
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
            self.image_model.teacher if isinstance(self.image_model, Borrowed) else self.image_model
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
                " features were adopted without --preprocess; encode images with the teacher"
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
    def _words(self) -> fast_tokenizer.CachedTokenizer | None:
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
            lengths[i] = self._length(sentences[i])
        return tokens, lengths

    def _length(self, sentence: str) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is not None:
            return len(inner(sentence)["input_ids"])
        return len(self.tokenizer.encode(sentence)) + 2

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


def load_encoder(
    spec: str, device: str = "auto", precision: str = "fp32", text_model: str | None = None
) -> Encoder:
    """Load the encoder that ``spec`` names (see the module's table) for inference.

    ``text_model`` replaces the recorded teacher as the text tower of a distilled image tower: the
    teacher where it lies now, or the run of a text tower that was distilled from the same teacher.
    Raises ModelError when the spec names nothing, has no weights, or the text tower is not the one
    trained against.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    where = pick_device(device)
    path = Path(spec)
    if (path / runs.FILE).is_file():
        return _load_run(path, where, precision, text_model)
    model, tokenizer = _load_open_clip(spec, path)
    return _encoder(spec, model, tokenizer, where, precision)


def _load_open_clip(spec: str, path: Path) -> tuple[nn.Module, Callable]:
    if path.is_dir() or (path.is_file() and (path.parent / open_clip.CONFIG).is_file()):
        folder = path if path.is_dir() else path.parent
        if not (folder / open_clip.CONFIG).is_file():
            missing = (
                f"neither the folder of a finished run ({runs.FILE}) nor of open_clip"
                f" ({open_clip.CONFIG})"
            )
            raise ModelError(
                f"{folder}: {missing}; finish a run with train --resume, or name its"
                " checkpoints/best"
            )
        open_clip.check_folder(folder)
        name = open_clip.folder_config(folder.resolve())
        return open_clip.create(name, path if path.is_file() else None), open_clip.tokenizer_of(
            name
        )
    arch, _, weights = spec.partition("/")
    if path.is_file():
        raise ModelError(
            f"{spec}: a weights file does not say its architecture; write ARCH/{spec}, e.g."
            f" ViT-B-32/{spec}"
        )
    if path.is_absolute() or spec.startswith("."):
        raise ModelError(f"{spec}: there is no such file or folder; check the path")
    if weights and not open_clip.knows(arch):
        raise ModelError(f"{spec}: no such file or folder, and {open_clip.unknown(arch)}")
    if not weights:
        open_clip.config_of(arch)
        tags = ", ".join(open_clip.tags_of(arch)[:6]) or "none known"
        raise ModelError(
            f"{spec}: an architecture without weights; say {arch}/TAG (tags: {tags}), {arch}/FILE"
            f" or {arch}/random:SEED"
        )
    tokenizer_name = arch
    if weights.startswith("random:"):
        if not re.fullmatch(r"random:[0-9]{1,18}", weights):
            raise ModelError(
                f"{spec}: expected {arch}/random:SEED with a whole number of at most 18 digits,"
                f" e.g. {arch}/random:0"
            )
        model = open_clip.random(arch, int(weights.removeprefix("random:")))
    elif weights in open_clip.tags_of(arch) or Path(weights).is_file():
        model = open_clip.create(arch, Path(weights) if Path(weights).is_file() else weights)
    else:
        open_clip.config_of(arch)
        tags = ", ".join(open_clip.tags_of(arch)[:6]) or "none known"
        raise ModelError(
            f"{spec}: '{weights}' is neither a tag of {arch} ({tags}, ...) nor a file; correct the"
            " name or path"
        )
    return model, open_clip.tokenizer_of(tokenizer_name)


def _encoder(
    name: str, model: nn.Module, tokenizer: Callable, device: torch.device, precision: str
) -> Encoder:
    bias = getattr(model, "logit_bias", None)
    preprocess = open_clip.preprocess_of(model)
    card = EncoderCard(
        name=name,
        weights_sha256=weights_sha256(model),
        dim=_dim(model),
        logit_scale=float(model.logit_scale.detach().float().exp()),
        logit_bias=None if bias is None else float(bias.detach()),
        preprocess=preprocess,
        tokenizer=_tokenizer_name(tokenizer),
        context_length=getattr(tokenizer, "context_length", None),
        activation=open_clip.activation_of(model),
    )
    model = model.to(device).eval().requires_grad_(False)
    return Encoder(
        card, model, model, open_clip.transform_of(preprocess), tokenizer, device, precision
    )


@torch.inference_mode()
def _dim(model: nn.Module) -> int:
    tokens = torch.zeros(1, model.context_length, dtype=torch.long)
    return model.encode_text(tokens).shape[-1]


def _tokenizer_name(tokenizer: Callable) -> str:
    inner = getattr(getattr(tokenizer, "tokenizer", None), "name_or_path", "")
    size = getattr(tokenizer, "vocab_size", None) or len(getattr(tokenizer, "encoder", ()) or ())
    return f"{type(tokenizer).__name__}({inner or size})"


def _load_run(
    folder: Path, device: torch.device, precision: str, text_model: str | None
) -> Encoder:
    """Load a run folder: a whole CLIP, or one tower with the other tower of the teacher it was
    distilled from.
    """
    record = runs.read(folder)
    if record.kind == "clip":
        name = open_clip.folder_config(folder.resolve())
        return _encoder(
            str(folder), open_clip.create(name), open_clip.tokenizer_of(name), device, precision
        )
    if record.kind == "text-tower":
        return _load_text_tower(folder, record, device, precision)
    tower = ImageTower(open_clip.image_tower(record.model_cfg))
    runs.load_weights(tower, folder / runs.IMAGE_TOWER)
    text = _text_side(folder, record, text_model, device, precision)
    preprocess = record.preprocess_cfg
    teacher = _teacher_card(folder, record)
    card = dataclasses.replace(
        text.card,
        name=str(folder),
        weights_sha256=_digest(weights_sha256(tower), text.card.weights_sha256),
        logit_scale=teacher.logit_scale,
        logit_bias=teacher.logit_bias,
        preprocess=preprocess,
        shared_towers={} if text.card.shared_towers else {"text": teacher.identity()},
    )
    tower = tower.to(device).eval().requires_grad_(False)
    transform = open_clip.transform_of(preprocess)
    return Encoder(card, tower, text.text_model, transform, text.tokenizer, device, precision)


def _load_text_tower(
    folder: Path, record: RunRecord, device: torch.device, precision: str
) -> Encoder:
    """Load the text tower of a run; the teacher, whose image tower goes with it, is loaded when an
    image is encoded.
    """
    tower = TextTower(open_clip.text_tower(record.model_cfg))
    teacher = _teacher_card(folder, record)
    runs.load_weights(tower, folder / runs.TEXT_TOWER)
    tokenizer = open_clip.tokenizer_for(record.model_cfg)
    card = dataclasses.replace(
        teacher,
        name=str(folder),
        weights_sha256=_digest(teacher.weights_sha256, weights_sha256(tower)),
        tokenizer=_tokenizer_name(tokenizer),
        context_length=getattr(tokenizer, "context_length", None),
        activation=open_clip.activation_of(tower),
        shared_towers={"image": teacher.identity()},
    )
    image = Borrowed(lambda: _teacher_of(folder, record, None, device, precision).image_model)
    tower = tower.to(device).eval().requires_grad_(False)
    return Encoder(
        card, image, tower, open_clip.transform_of(teacher.preprocess), tokenizer, device, precision
    )


class Borrowed(nn.Module):
    """The image tower of a teacher that is loaded on first use: sentences alone do not need it."""

    def __init__(self, load: Callable[[], nn.Module]):
        super().__init__()
        self._load = load

    @functools.cached_property
    def _teacher(self) -> list[nn.Module]:
        return [self._load()]  # in a list, or it would become a part of this module

    @property
    def teacher(self) -> nn.Module:
        """The teacher's model."""
        return self._teacher[0]

    @property
    def visual(self) -> nn.Module:
        """The teacher's image tower."""
        return self.teacher.visual

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the teacher's rows [B, D], not normalised, of pixels [B, 3, S, S]."""
        return self.teacher.encode_image(pixels)


def _digest(image: str | None, text: str | None) -> str:
    return hashlib.sha256(f"{image}{text}".encode()).hexdigest()


def _text_side(
    folder: Path, record: RunRecord, text_model: str | None, device: torch.device, precision: str
) -> Encoder:
    """Return whose text tower goes with the image tower of a run: a text tower's run of the same
    teacher, or the teacher.
    """
    if text_model is None or not (Path(text_model) / runs.FILE).is_file():
        return _teacher_of(folder, record, text_model, device, precision)
    text = load_encoder(text_model, str(device), precision)
    if "image" not in text.card.shared_towers:
        return _teacher_of(folder, record, text_model, device, precision)
    teacher = _teacher_card(folder, record)
    different = differences(text.card.shared_towers["image"], teacher.identity())
    if different:
        raise ModelError(
            f"{text_model} and {folder} learned from different teachers ({'; '.join(different)}); "
            "name a run with the same one"
        )
    return text


def _teacher_card(folder: Path, record: RunRecord) -> EncoderCard:
    """Return the card of the teacher of a run; raise ModelError when the record has none."""
    path = folder / runs.FILE
    if record.teacher is None:
        raise ModelError(f"{path}: has no 'teacher'; train again or restore the file")
    try:
        return EncoderCard.from_fields(record.teacher)
    except TypeError as error:
        raise ModelError(
            f"{path}: 'teacher' is no card of an encoder ({error}); train again or restore the file"
        ) from error


def _teacher_of(
    folder: Path, record: RunRecord, text_model: str | None, device: torch.device, precision: str
) -> Encoder:
    card = _teacher_card(folder, record)
    moved_along = folder / record.teacher_at if record.teacher_at else None
    spec = text_model or (
        str(moved_along.resolve()) if moved_along and moved_along.exists() else card.name
    )
    try:
        teacher = load_encoder(spec, str(device), precision)
    except ModelError as error:
        raise ModelError(
            f"{folder} was distilled from '{card.name}' and needs its other tower: {error}; "
            "name the teacher's present place with --text-model"
        ) from error
    if card.weights_sha256 is not None and teacher.card.weights_sha256 != card.weights_sha256:
        raise ModelError(
            f"{spec}: weights {teacher.card.weights_sha256[:12]}, but {folder} was distilled from"
            f" weights {card.weights_sha256[:12]}; name the right teacher with --text-model"
        )
    if teacher.card.dim != card.dim:
        raise ModelError(
            f"{spec}: {teacher.card.dim} dimensions, {folder} has {card.dim}; name its teacher"
            " with --text-model"
        )
    return teacher
