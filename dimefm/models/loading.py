"""Load encoders: open_clip models and run folders, from the names that users give."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dimefm.cache import EncoderCard
from dimefm.cache.manifest import differences
from dimefm.errors import ModelError
from dimefm.models import (
    config_check,
    download,
    onnx_folder,
    open_clip,
    published,
    timm_teacher,
    timm_weights,
)
from dimefm.models.assembly import (
    Compute,
    Expected,
    WrongTeacher,
    assemble,
    assemble_images,
    tokenizer_name,
    without_text,
)
from dimefm.models.encoder import BorrowedTower, Encoder, weights_sha256
from dimefm.models.encoder_spec import EncoderSpec
from dimefm.models.hf.download import fetch_folder
from dimefm.models.hf.loading import load_folder
from dimefm.models.inference.precision import PRECISIONS
from dimefm.models.offline import offline, require_downloaded
from dimefm.models.towers import ImageTower, TextTower
from dimefm.models.weights_check import check_length
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.runtime.devices import pick_device
from dimefm.runtime.text import without_remedy


def load_encoder(
    spec: str,
    device: str = "auto",
    precision: str = "fp32",
    text_model: str | None = None,
    preprocess: str | None = None,
    *,
    recorded: EncoderCard | None = None,
    may_download: bool = True,
) -> Encoder:
    """Load the encoder that ``spec`` names, see :mod:`dimefm.models.encoder_spec`, for inference.

    ``text_model`` replaces the recorded teacher as the text tower of a distilled image tower: the
    teacher where it lies now, or the run of a text tower that was distilled from the same teacher.

    ``preprocess`` is for ``ARCH/FILE``, since a weights file does not say how images are prepared:
    a tag of the architecture, or a JSON file, see :mod:`dimefm.models.published`. A cache or run
    that was made with such weights has ``recorded`` it, and the recorded preprocessing is used.
    ``may_download`` is False for a name that came with data, not from the user.

    Raises ModelError when the spec names nothing, has no weights, the text tower is not the one
    trained against, or the preprocessing is not known.
    """
    if precision not in PRECISIONS:
        raise ModelError(
            f"--precision {precision}: expected one of {', '.join(PRECISIONS)}. Fix: choose one"
        )
    compute = Compute(pick_device(device), precision)
    return _load(spec, compute, text_model, preprocess, recorded, may_download)


def _load(
    spec: str,
    compute: Compute,
    text_model: str | None = None,
    preprocess: str | None = None,
    recorded: EncoderCard | None = None,
    may_download: bool = True,
    expected: Expected | None = None,
) -> Encoder:
    """Load any encoder; ``expected`` is what the weights must be, before a tokenizer is made."""
    parsed = EncoderSpec.parse(spec)
    if preprocess is not None and parsed.kind not in ("file", "hf", "timm"):
        raise ModelError(
            f"--preprocess {preprocess}: is for weights named ARCH/FILE, but {spec} states its own"
            " preprocessing. Fix: remove --preprocess"
        )
    if parsed.kind == "run":
        loading = expected.loading if expected is not None else ()
        return _load_run(parsed.path, compute, text_model, loading, expected)
    if parsed.kind == "onnx":
        return _load_onnx(parsed, compute, expected)
    if parsed.kind == "timm":
        return _load_timm(parsed, compute, preprocess, recorded, may_download, expected)
    if parsed.kind == "hf":
        return _load_hf(parsed, compute, preprocess, recorded, may_download, expected)
    preparation = None
    if parsed.kind == "file":
        preparation = _preparation(parsed, preprocess, recorded)
    _require_tokenizer(parsed)
    with contextlib.nullcontext() if may_download else offline():
        parsed = _fetched(parsed, may_download)
        name, model = _load_open_clip(parsed, preparation)
        tokenizer = functools.partial(_tokenizer, parsed, name, may_download)
        config = open_clip.whole_config(name, model)
        return assemble(spec, model, config, tokenizer, compute, preparation, expected)


def _load_timm(
    spec: EncoderSpec,
    compute: Compute,
    chosen: str | None,
    recorded: EncoderCard | None,
    may_download: bool,
    expected: Expected | None,
) -> Encoder:
    """Load an image model of timm."""
    preparation = _stated(chosen, recorded)
    name = spec.architecture
    if spec.seed is not None:
        model = timm_teacher.random(name, spec.seed)
    elif spec.path != Path():
        model = timm_teacher.from_file(name, spec.path, preparation is not None)
    else:
        if not may_download:
            timm_weights.require_local(name)
        with contextlib.nullcontext() if may_download else offline():
            model = timm_teacher.pretrained(name)
    return assemble_images(spec.text, model, compute, preparation, expected)


def _stated(chosen: str | None, recorded: EncoderCard | None) -> published.Preparation | None:
    """Return the preparation of images that the user chose, else the recorded one; None without."""
    if chosen is not None:
        return published.preparation_of_file(chosen)
    if recorded is not None and "mean" in recorded.preprocess:
        preprocess = config_check.preprocessing(recorded.preprocess, recorded.name)
        return published.Preparation(preprocess, "as recorded")
    return None


def _load_hf(
    spec: EncoderSpec,
    compute: Compute,
    chosen: str | None,
    recorded: EncoderCard | None,
    may_download: bool,
    expected: Expected | None,
) -> Encoder:
    """Load a folder of transformers, or a name on the hub."""
    preparation = _stated(chosen, recorded)
    preprocess = None if preparation is None else preparation.preprocess
    folder = spec.path
    if folder == Path():
        folder = fetch_folder(spec.text, spec.repository, may_download)
    with offline():
        model, make_tokenizer = load_folder(spec.text, folder, preprocess)
        return assemble(spec.text, model, None, make_tokenizer, compute, preparation, expected)


def _require_tokenizer(spec: EncoderSpec) -> None:
    """Raise ModelError when the tokenizer cannot be had, before gigabytes are read."""
    if spec.kind == "folder":
        config, _ = config_check.read_model_file(spec.path / open_clip.CONFIG)
    elif spec.architecture:
        config = open_clip.config_of(spec.architecture)
    else:
        return
    download.require_transformers(spec.text, config["text_cfg"])


def _fetched(spec: EncoderSpec, may_download: bool) -> EncoderSpec:
    """Have a model on this machine; return its folder in place of its name on a hub."""
    if spec.kind == "hub":
        folder = download.fetch_repository(spec.text, spec.repository, may_download)
        return dataclasses.replace(spec, kind="folder", path=folder)
    if spec.kind == "tag" and may_download:
        download.fetch_tag(spec.architecture, spec.tag)
    elif spec.kind == "tag":
        require_downloaded(spec.architecture, spec.tag)
    return spec


def _tokenizer(spec: EncoderSpec, config: str, may_download: bool) -> Callable:
    """Return the tokenizer; only a tag and a hub's model may download it.

    ``config`` is open_clip's name of the model's config.
    """
    near = spec.path.parent if spec.kind == "file" else None
    tokenizer = open_clip.tokenizer_of(config, near, may_download and spec.kind == "tag")
    if spec.repository and hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.name_or_path = spec.text  # the same on every machine
    return tokenizer


def _preparation(
    spec: EncoderSpec, chosen: str | None, recorded: EncoderCard | None
) -> published.Preparation:
    """Return the preparation of images for a weights file of an architecture."""
    if chosen is None and recorded is not None and "mean" in recorded.preprocess:
        preprocess = config_check.preprocessing(recorded.preprocess, recorded.name)
        quick_gelu = recorded.activation == "quick_gelu"
        return published.Preparation(preprocess, "as recorded", quick_gelu)
    return published.preparation_of(spec.architecture, spec.path, chosen)


def _load_open_clip(
    spec: EncoderSpec, preparation: published.Preparation | None
) -> tuple[str, nn.Module]:
    """Return open_clip's name and the model of anything but a run."""
    if spec.kind == "folder":
        name = open_clip.folder_config(spec.path.resolve())
        return name, open_clip.create(name, spec.weights)
    name = spec.architecture
    if spec.kind == "random":
        return name, open_clip.random(name, spec.seed)
    if preparation is not None:
        return name, open_clip.create(name, spec.path, quick_gelu=preparation.quick_gelu)
    with offline():  # it is on this machine by now
        return name, open_clip.create(name, spec.tag)


def _load_onnx(spec: EncoderSpec, compute: Compute, expected: Expected | None) -> Encoder:
    """Load a folder of ONNX graphs."""
    variant = spec.tag or None
    encoder = onnx_folder.load(spec.text, spec.path, variant, compute.device, compute.precision)
    if expected is not None:
        expected.check(spec.text, encoder.card.weights_sha256 or "", encoder.card.dim)
    return encoder


def _load_run(
    folder: Path,
    compute: Compute,
    text_model: str | None,
    loading: tuple[Path, ...],
    expected: Expected | None,
) -> Encoder:
    """Load a run folder: a whole CLIP, or one tower with the other tower of its teacher.

    ``loading`` are the run folders whose teacher it is.
    """
    place = folder.resolve()
    if place in loading:
        raise ModelError(
            f"{folder / runs.FILE}: its teacher leads back to this run. Fix: name the teacher with"
            " --text-model"
        )
    loading = (*loading, place)
    record = runs.read(folder)
    if record.kind == "clip":
        name = open_clip.folder_config(place)
        model = open_clip.create(name)
        config = open_clip.whole_config(name, model)
        tokenizer = functools.partial(open_clip.tokenizer_of, name)
        return assemble(str(folder), model, config, tokenizer, compute, expected=expected)
    if record.kind == "text-tower":
        encoder = _load_text_tower(folder, record, compute, loading)
    else:
        encoder = _load_image_tower(folder, record, text_model, compute, loading)
    if expected is not None:
        expected.check(str(folder), encoder.card.weights_sha256 or "", encoder.card.dim)
    return encoder


def _load_image_tower(
    folder: Path,
    record: RunRecord,
    text_model: str | None,
    compute: Compute,
    loading: tuple[Path, ...],
) -> Encoder:
    """Load the image tower of a run, and the text tower of its teacher."""
    where = str(folder / runs.FILE)
    config = config_check.model_config(record.model_cfg, where, config_check.IMAGE_KEYS)
    preprocess = config_check.preprocessing(record.preprocess_cfg, where, whole=True)
    weights = folder / runs.IMAGE_TOWER
    check_length(weights, config_check.parameters(config))
    tower = ImageTower(open_clip.image_tower(config))
    runs.load_weights(tower, weights)
    text = _text_side(folder, record, text_model, compute, loading)
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
        image_config=config,
        text_config=text.text_config,
    )


def _load_text_tower(
    folder: Path, record: RunRecord, compute: Compute, loading: tuple[Path, ...]
) -> Encoder:
    """Load the text tower of a run.

    The teacher, whose image tower goes with it, is loaded when an image is encoded.
    """
    where = str(folder / runs.FILE)
    config = config_check.model_config(record.model_cfg, where, config_check.TEXT_KEYS)
    weights = folder / runs.TEXT_TOWER
    check_length(weights, config_check.parameters(config))
    tower = TextTower(open_clip.text_tower(config))
    teacher = _teacher_card(folder, record)
    runs.load_weights(tower, weights)
    tokenizer = open_clip.tokenizer_for(config)
    card = dataclasses.replace(
        teacher,
        name=str(folder),
        weights_sha256=_digest(teacher.weights_sha256, weights_sha256(tower)),
        tokenizer=tokenizer_name(tokenizer),
        context_length=getattr(tokenizer, "context_length", None),
        activation=open_clip.activation_of(tower),
        shared_towers={"image": teacher.identity()},
    )
    image = BorrowedTower(lambda: _teacher_of(folder, record, None, compute, loading))
    tower = tower.to(compute.device).eval().requires_grad_(False)
    return Encoder(
        card=card,
        image_model=image,
        text_model=tower,
        preprocess=open_clip.transform_of(teacher.preprocess),
        tokenizer=tokenizer,
        device=compute.device,
        precision=compute.precision,
        text_config=config,
    )


def _digest(image: str | None, text: str | None) -> str:
    return hashlib.sha256(f"{image}{text}".encode()).hexdigest()


def _text_side(
    folder: Path,
    record: RunRecord,
    text_model: str | None,
    compute: Compute,
    loading: tuple[Path, ...],
) -> Encoder:
    """Return the encoder whose text tower goes with the image tower of a run.

    It is the teacher, or the run of a text tower that was distilled from the same teacher.
    """
    card = _teacher_card(folder, record)
    if timm_teacher.is_image_only(card):
        if text_model is not None:
            raise ModelError(
                f"--text-model {text_model}: {folder} was distilled from {card.name}, which has no"
                " text tower. Fix: remove --text-model"
            )
        return without_text(card, compute)
    if text_model is None or not (Path(text_model) / runs.FILE).is_file():
        return _teacher_of(folder, record, text_model, compute, loading)
    text = _load(text_model, compute)
    if "image" not in text.card.shared_towers:
        return _teacher_of(folder, record, text_model, compute, loading)
    different = differences(text.card.shared_towers["image"], card.identity())
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
        card = EncoderCard.from_fields(record.teacher)
        card.check_types()
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: 'teacher' is no card of an encoder ({error}). Fix: train again or restore the"
            " file"
        ) from error
    if card.preprocess:
        config_check.preprocessing(card.preprocess, f"{path}: teacher", whole=True)
    return card


def name_of(card: EncoderCard, where: str, flag: str) -> str:
    """Return the name by which a recorded encoder is loaded.

    Raises ModelError, beginning with ``where``, when the record does not say which encoder it was.
    ``flag`` is the option that names it.
    """
    if card.is_named:
        return card.name
    raise ModelError(
        f"{where}: the embeddings are of an unknown teacher, expected a name like ViT-L-14/openai;"
        f" the files that they came from do not say. Fix: name the teacher with {flag}"
    )


def _place_of_teacher(folder: Path, record: RunRecord) -> str:
    """Return the teacher's folder where it moved along with the run, else ""."""
    if not record.teacher_at:
        return ""
    place = folder / record.teacher_at
    try:
        return str(place.resolve()) if place.exists() else ""
    except (OSError, ValueError):  # a name that no file can have
        return ""


def _teacher_of(
    folder: Path,
    record: RunRecord,
    text_model: str | None,
    compute: Compute,
    loading: tuple[Path, ...],
) -> Encoder:
    """Return the teacher of a run; raise ModelError when another model is in its place."""
    card = _teacher_card(folder, record)
    spec = text_model or _place_of_teacher(folder, record)
    if not spec:
        spec = name_of(card, str(folder), "--text-model")
    try:
        return _load(
            spec,
            compute,
            may_download=text_model is not None,
            recorded=card,
            expected=Expected(card, folder, loading),
        )
    except WrongTeacher:
        raise
    except ModelError as error:
        raise ModelError(
            f"{folder} was distilled from '{card.name}' and needs its other tower:"
            f" {without_remedy(error)}. Fix: name {card.name} yourself, or its present place, with"
            " --text-model"
        ) from error
