"""Load encoders: open_clip models and run folders, from the names that users give."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dimefm.cache import EncoderCard
from dimefm.cache.manifest import differences
from dimefm.errors import ModelError
from dimefm.models import open_clip, published
from dimefm.models.encoder import BorrowedTower, Encoder, weights_sha256
from dimefm.models.encoder_spec import EncoderSpec
from dimefm.models.inference.precision import PRECISIONS
from dimefm.models.towers import ImageTower, TextTower
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.runtime.devices import pick_device


@dataclass(frozen=True)
class Compute:
    """Where an encoder computes, and in which precision."""

    device: torch.device
    precision: str

    def load(self, spec: str, recorded: EncoderCard | None = None) -> Encoder:
        """Load another encoder that computes in the same way."""
        return load_encoder(spec, str(self.device), self.precision, recorded=recorded)


def load_encoder(
    spec: str,
    device: str = "auto",
    precision: str = "fp32",
    text_model: str | None = None,
    preprocess: str | None = None,
    *,
    recorded: EncoderCard | None = None,
) -> Encoder:
    """Load the encoder that ``spec`` names, see :mod:`dimefm.models.encoder_spec`, for inference.

    ``text_model`` replaces the recorded teacher as the text tower of a distilled image tower: the
    teacher where it lies now, or the run of a text tower that was distilled from the same teacher.

    ``preprocess`` is for ``ARCH/FILE``, since a weights file does not say how images are prepared:
    a tag of the architecture, or a JSON file, see :mod:`dimefm.models.published`. A cache or run
    that was made with such weights has ``recorded`` it, and the recorded preprocessing is used.

    Raises ModelError when the spec names nothing, has no weights, the text tower is not the one
    trained against, or the preprocessing is not known.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    compute = Compute(pick_device(device), precision)
    parsed = EncoderSpec.parse(spec)
    if preprocess is not None and parsed.kind != "file":
        raise ModelError(
            f"--preprocess {preprocess}: is for weights named ARCH/FILE, but {spec} states its own"
            " preprocessing. Fix: remove --preprocess"
        )
    if parsed.kind == "run":
        return _load_run(parsed.path, compute, text_model)
    if parsed.kind == "file":
        return _load_file(parsed, compute, preprocess, recorded)
    model, tokenizer = _load_open_clip(parsed)
    return _encoder(spec, model, tokenizer, compute)


def _load_file(
    spec: EncoderSpec, compute: Compute, chosen: str | None, recorded: EncoderCard | None
) -> Encoder:
    """Load a weights file of an architecture, with the preprocessing of such weights."""
    if chosen is None and recorded is not None and "mean" in recorded.preprocess:
        quick_gelu = recorded.activation == "quick_gelu"
        preparation = published.Preparation(recorded.preprocess, "as recorded", quick_gelu)
    else:
        preparation = published.preparation_of(spec.architecture, spec.path, chosen)
    model = open_clip.create(spec.architecture, spec.path, quick_gelu=preparation.quick_gelu)
    tokenizer = open_clip.tokenizer_of(spec.architecture)
    return _encoder(spec.text, model, tokenizer, compute, preparation)


def _load_open_clip(spec: EncoderSpec) -> tuple[nn.Module, Callable]:
    """Return the model and the tokenizer of anything but a run or a weights file."""
    if spec.kind == "folder":
        open_clip.check_folder(spec.path)
        name = open_clip.folder_config(spec.path.resolve())
        return open_clip.create(name, spec.weights), open_clip.tokenizer_of(name)
    if spec.kind == "random":
        model = open_clip.random(spec.architecture, spec.seed)
    else:
        model = open_clip.create(spec.architecture, spec.tag)
    return model, open_clip.tokenizer_of(spec.architecture)


def _encoder(
    name: str,
    model: nn.Module,
    tokenizer: Callable,
    compute: Compute,
    preparation: published.Preparation | None = None,
) -> Encoder:
    """Return the encoder of a whole CLIP; without a ``preparation`` the model states its own."""
    bias = getattr(model, "logit_bias", None)
    preprocess = open_clip.preprocess_of(model)
    if preparation is not None:
        preprocess = {**preparation.preprocess, "size": preprocess["size"]}
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
    )


@torch.inference_mode()
def _dim(model: nn.Module) -> int:
    tokens = torch.zeros(1, model.context_length, dtype=torch.long)
    return model.encode_text(tokens).shape[-1]


def _tokenizer_name(tokenizer: Callable) -> str:
    inner = getattr(getattr(tokenizer, "tokenizer", None), "name_or_path", "")
    size = getattr(tokenizer, "vocab_size", None) or len(getattr(tokenizer, "encoder", ()) or ())
    return f"{type(tokenizer).__name__}({inner or size})"


def _load_run(folder: Path, compute: Compute, text_model: str | None) -> Encoder:
    """Load a run folder: a whole CLIP, or one tower with the other tower of its teacher."""
    record = runs.read(folder)
    if record.kind == "clip":
        config = open_clip.folder_config(folder.resolve())
        model = open_clip.create(config)
        return _encoder(str(folder), model, open_clip.tokenizer_of(config), compute)
    if record.kind == "text-tower":
        return _load_text_tower(folder, record, compute)
    tower = ImageTower(open_clip.image_tower(record.model_cfg))
    runs.load_weights(tower, folder / runs.IMAGE_TOWER)
    text = _text_side(folder, record, text_model, compute)
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
    tower = tower.to(compute.device).eval().requires_grad_(False)
    return Encoder(
        card=card,
        image_model=tower,
        text_model=text.text_model,
        preprocess=open_clip.transform_of(preprocess),
        tokenizer=text.tokenizer,
        device=compute.device,
        precision=compute.precision,
    )


def _load_text_tower(folder: Path, record: RunRecord, compute: Compute) -> Encoder:
    """Load the text tower of a run.

    The teacher, whose image tower goes with it, is loaded when an image is encoded.
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
    image = BorrowedTower(lambda: _teacher_of(folder, record, None, compute).image_model)
    tower = tower.to(compute.device).eval().requires_grad_(False)
    return Encoder(
        card=card,
        image_model=image,
        text_model=tower,
        preprocess=open_clip.transform_of(teacher.preprocess),
        tokenizer=tokenizer,
        device=compute.device,
        precision=compute.precision,
    )


def _digest(image: str | None, text: str | None) -> str:
    return hashlib.sha256(f"{image}{text}".encode()).hexdigest()


def _text_side(
    folder: Path, record: RunRecord, text_model: str | None, compute: Compute
) -> Encoder:
    """Return the encoder whose text tower goes with the image tower of a run.

    It is the teacher, or the run of a text tower that was distilled from the same teacher.
    """
    if text_model is None or not (Path(text_model) / runs.FILE).is_file():
        return _teacher_of(folder, record, text_model, compute)
    text = compute.load(text_model)
    if "image" not in text.card.shared_towers:
        return _teacher_of(folder, record, text_model, compute)
    teacher = _teacher_card(folder, record)
    different = differences(text.card.shared_towers["image"], teacher.identity())
    if different:
        raise ModelError(
            f"{text_model} and {folder} learned from different teachers ({'; '.join(different)}). "
            "Fix: name a run with the same one"
        )
    return text


def _teacher_card(folder: Path, record: RunRecord) -> EncoderCard:
    """Return the card of the teacher of a run; raise ModelError when the record has none."""
    path = folder / runs.FILE
    if record.teacher is None:
        raise ModelError(f"{path}: has no 'teacher'. Fix: train again or restore the file")
    try:
        return EncoderCard.from_fields(record.teacher)
    except TypeError as error:
        raise ModelError(
            f"{path}: 'teacher' is no card of an encoder ({error}). Fix: train again or restore the"
            " file"
        ) from error


def _place_of_teacher(folder: Path, record: RunRecord) -> str:
    """Return the teacher's folder where it moved along with the run, else ""."""
    if not record.teacher_at:
        return ""
    place = folder / record.teacher_at
    return str(place.resolve()) if place.exists() else ""


def _teacher_of(
    folder: Path, record: RunRecord, text_model: str | None, compute: Compute
) -> Encoder:
    """Return the teacher of a run; raise ModelError when another model is in its place."""
    card = _teacher_card(folder, record)
    spec = text_model or _place_of_teacher(folder, record) or card.name
    try:
        teacher = compute.load(spec, card)
    except ModelError as error:
        raise ModelError(
            f"{folder} was distilled from '{card.name}' and needs its other tower: {error}. "
            "Fix: name the teacher's present place with --text-model"
        ) from error
    if card.weights_sha256 is not None and teacher.card.weights_sha256 != card.weights_sha256:
        raise ModelError(
            f"{spec}: weights {teacher.card.weights_sha256[:12]}, but {folder} was distilled from"
            f" weights {card.weights_sha256[:12]}. Fix: name the right teacher with --text-model"
        )
    if teacher.card.dim != card.dim:
        raise ModelError(
            f"{spec}: {teacher.card.dim} dimensions, {folder} has {card.dim}. Fix: name its teacher"
            " with --text-model"
        )
    return teacher
