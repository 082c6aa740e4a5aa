"""Import a published checkpoint: a file in, a run folder out.

Every tensor of the file must have its place in the model, and every weight of the model must be in
the file. Otherwise nothing is loaded, and nothing is written.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dimefm.cache import EncoderCard
from dimefm.errors import ModelError, did_you_mean
from dimefm.models import (
    config_check,
    open_clip,
    published,
    student,
    weights_check,
    weights_file,
)
from dimefm.models.loading import load_encoder
from dimefm.models.towers import ImageTower
from dimefm.models.weights import archive, matching, shapes
from dimefm.models.weights.family import Family, Tensors, renamed
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.runtime.text import first_few
from dimefm.runtime.versions import libraries
from dimefm.storage.files import remove_new_dirs_on_error, sha256_file, to_json, write_text
from dimefm.storage.out_folder import refuse_foreign

FAMILIES = {
    "tinyclip": "tinyclip",
    "declip": "declip",
    "dime-fm": "dime_fm",
    "clip-kd": "clip_kd",
    "openai": "openai",
    "open_clip": "open_clip_layout",
}
"""Family -> its module in this package, in the order in which an unknown file is shown to them."""
AUTO = "auto"
FEW_NAMES = 3  # in a message
FEW_ARCHITECTURES = 6
SMALL_MODEL = 10_000_000  # weights
BYTES_OF_A_WEIGHT = 16
"""By which the size of a file tells how many weights it may hold at most: it unpacks to twice its
size, as a program with its code does, and no further.
"""
TRUNK = "visual.trunk."  # of timm's networks
TEXT_NAMES = r"(text_projection|positional_embedding|token_embedding|transformer|ln_final)"
TOWER_KEYS = ("width", "layers", "patch_size", "image_size", "context_length", "vocab_size")


@dataclass(frozen=True)
class Imported:
    """What was imported: the run folder, the family, and what the student is."""

    out: Path
    family: str
    student: str
    kind: str
    dim: int
    image_size: int
    image_parameters: int
    text_parameters: int | None
    tensors: int
    logit_scale: float


@dataclass(frozen=True)
class _Model:
    """A model with the imported weights: its kind, config, preprocessing and name."""

    model: nn.Module
    kind: str
    config: dict
    preprocess: dict
    name: str


def import_checkpoint(
    file: str | os.PathLike,
    out: str | os.PathLike,
    family: str = AUTO,
    student: str | None = None,
    teacher: str | os.PathLike | None = None,
    preprocess: str | os.PathLike | None = None,
) -> Imported:
    """Write the run folder ``out`` from a published checkpoint ``file``.

    ``family`` is one of ``FAMILIES``, or "auto": the names in the file tell. ``student`` names the
    architecture where the shapes do not tell it, as ``dimefm train --student``. ``teacher`` is the
    encoder whose text tower an image tower alone uses. ``preprocess`` says how open_clip's weights
    see images where the tags of the architecture differ in it.

    Raises ModelError when the file is of no known family, any weight does not fit, or the model
    cannot be told. Nothing is written then.
    """
    path = Path(file)
    folder = Path(out)
    _refuse_used(folder)
    tensors = _tensors(path)
    layout = _family(family, tensors, path)
    try:
        remapped = layout.remap(tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    chosen = None if preprocess is None else os.fspath(preprocess)
    imported = _model(path, layout, remapped, student, chosen)
    card = None
    if imported.kind == "image-tower":
        card = _teacher(path, imported, teacher)
    elif teacher is not None:
        raise ModelError(
            f"{path}: has a text tower of its own, so it takes no teacher. Fix: remove --teacher"
        )
    record = _record(imported, layout, path, folder, card)
    with remove_new_dirs_on_error(folder):
        _write(imported, record, folder)
    logit_scale = _logit_scale(imported, card)
    return Imported(
        out=folder,
        family=layout.name,
        student=imported.name,
        kind=imported.kind,
        dim=imported.config["embed_dim"],
        image_size=imported.preprocess["size"],
        image_parameters=record.image_parameters or 0,
        text_parameters=record.text_parameters,
        tensors=len(remapped),
        logit_scale=logit_scale,
    )


def family_of(name: str) -> Family:
    """Return the family of a name; raise ModelError with the nearest one."""
    if name not in FAMILIES:
        raise ModelError(f"unknown family '{name}': {did_you_mean(name, [AUTO, *FAMILIES])}")
    return importlib.import_module(f"dimefm.models.weights.{FAMILIES[name]}").FAMILY


def _refuse_used(folder: Path) -> None:
    """Raise an error when the folder has a run, or something else, in it."""
    if (folder / runs.FILE).exists():
        raise ModelError(f"{folder}: holds a finished run already. Fix: choose another --out")
    refuse_foreign(folder, "run", ())


def _tensors(path: Path) -> Tensors:
    """Return the tensors of a file without the prefixes of wrappers."""
    weights_check.check_length(path, 0)
    weights = path.stat().st_size // BYTES_OF_A_WEIGHT
    weights_check.check_unpacked(path, weights)
    try:
        tensors = weights_file.state_dict_of(path)
    except Exception as error:  # torch and safetensors raise freely on damaged files
        if archive.is_archive(path):  # it may hold more than torch takes
            tensors = weights_file.state_dict_in(archive.read(path), path)
        elif isinstance(error, ModelError):
            raise
        else:
            reason = open_clip.reason_of(error)
            raise ModelError(
                f"{path}: cannot be loaded: {reason}. Fix: fetch the file again"
            ) from error
    weights_check.check_tensors(path, tensors.values(), weights)
    return _unwrapped(tensors)


def _unwrapped(tensors: Tensors) -> Tensors:
    """Return the tensors without what wrappers put into the names, if it is before every name."""
    result = {name: tensor for name, tensor in tensors.items() if name != weights_file.COUNTER}
    for wrapper in weights_file.WRAPPERS:
        result = {name.replace(wrapper, ""): tensor for name, tensor in result.items()}
    for prefix in weights_file.PREFIXES:
        if all(name.startswith(prefix) for name in result):
            result = {name.removeprefix(prefix): tensor for name, tensor in result.items()}
    return result


def _family(name: str, tensors: Tensors, path: Path) -> Family:
    if name != AUTO:
        return family_of(name)
    for known in FAMILIES:
        layout = family_of(known)
        if layout.claims(tensors):
            return layout
    names = first_few(sorted(tensors), FEW_NAMES)
    families = ", ".join(FAMILIES)
    raise ModelError(
        f"{path}: has the tensors {names[:200]}, expected those of a family ({families}). Fix: name"
        " the family with --family, or another file"
    )


def _model(
    path: Path, layout: Family, tensors: Tensors, name: str | None, preprocess: str | None
) -> _Model:
    """Return the model of a state dict with its weights; raise ModelError when one does not fit."""
    has_text = any(not item.startswith("visual.") for item in tensors)
    kind = "clip" if has_text else "image-tower"
    preparation = None
    if layout.name == "open_clip":
        name = name or _architecture(path, tensors)
        preparation = published.preparation_of(name, path, preprocess)
    elif preprocess is not None:
        raise ModelError(
            f"{path}: --preprocess is for the family open_clip; {layout.title} has its own. Fix:"
            " remove --preprocess"
        )
    if name is not None:
        config = _named(path, layout, name, tensors, kind)
        if preparation is not None and preparation.quick_gelu:
            config["quick_gelu"] = True
        model = _build(config, kind)
    else:
        name, config, model = _unnamed(path, layout, tensors, kind)
    weights = _fitting(model, tensors)
    matching.refuse_unmatched(matching.unmatched(model, weights), str(path), name)
    model.load_state_dict(weights)
    size = config["vision_cfg"]["image_size"]
    settings = {**open_clip.default_preprocess(size), **layout.preprocess}
    if preparation is not None:
        settings = {**preparation.preprocess, "size": size}
    return _Model(model.eval(), kind, config, settings, name)


def _named(path: Path, layout: Family, name: str, tensors: Tensors, kind: str) -> dict:
    """Return the config of a named architecture with the settings of a family.

    Without a text tower for an image tower.
    """
    config = student.resolve(name).config
    if "timm_model_name" not in config["vision_cfg"]:
        config.update(layout.settings)
    if kind == "image-tower":
        return config_check.model_config(config, name, config_check.IMAGE_KEYS)
    if "text_cfg" not in config:
        raise ModelError(
            f"{path}: has a text tower, but {name} describes none. Fix: name a whole architecture"
            " with --student"
        )
    if config["text_cfg"].get("hf_tokenizer_name") or config["text_cfg"].get("hf_model_name"):
        raise ModelError(
            f"{path}: {name} has a tokenizer or a text tower of Hugging Face, which a run folder"
            f" does not hold. Fix: use {name}/{path.name} itself where a model is asked for"
        )
    if "text.text_projection.bias" in tensors:
        config["text_cfg"]["proj_bias"] = True
    return config_check.model_config(config, name)


def _unnamed(
    path: Path, layout: Family, tensors: Tensors, kind: str
) -> tuple[str, dict, nn.Module]:
    """Return name, config and model by the shapes, or by trying the students of the family."""
    described = None
    if layout.from_shapes:
        try:
            described = shapes.model_config(tensors)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
    if described is None:
        for name in layout.students:
            config = _named(path, layout, name, tensors, kind)
            if _has_image_tower(config, tensors):
                return name, config, _build(config, kind)
        tried = first_few(layout.students, FEW_ARCHITECTURES)
        reason = f"fits none of {tried}" if tried else "its shapes do not tell the architecture"
        raise ModelError(f"{path}: {reason}. Fix: name the architecture with --student")
    described.update(layout.settings)
    keys = config_check.IMAGE_KEYS if kind == "image-tower" else ()
    config = config_check.model_config(described, str(path), keys)
    _refuse_hollow(path, config, tensors)
    return f"{layout.title}, by its shapes", config, _build(config, kind)


def _has_image_tower(config: dict, tensors: Tensors) -> bool:
    """Tell whether the image tower of a config is that of a state dict."""
    is_timm = any(name.startswith(TRUNK) for name in tensors)
    if is_timm != ("timm_model_name" in config["vision_cfg"]):
        return False
    if not is_timm:
        described = shapes.model_config(tensors)
        return described is not None and _signature(described) == _signature(config)
    visual = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    tower = _build(config, "image-tower")
    return not matching.unmatched(tower, matching.complete(tower, visual))


def _refuse_hollow(path: Path, config: dict, tensors: Tensors) -> None:
    """Raise ModelError when a few shapes describe a model far larger than the file."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    parameters = config_check.parameters(config)
    if parameters > 2 * numbers + SMALL_MODEL:
        raise ModelError(
            f"{path}: has {numbers:,} numbers, but its shapes describe a model of {parameters:,}."
            " Fix: fetch the whole checkpoint"
        )


def _architecture(path: Path, tensors: Tensors) -> str:
    """Return the one architecture of open_clip that has the shapes of a state dict.

    Raises ModelError when there is none, or several: they differ in what no shape tells.
    """
    try:
        described = shapes.model_config(tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    names = [] if described is None else _same_shapes(described)
    if len(names) == 1:
        return names[0]
    reason = "its shapes do not tell the architecture"
    if names:
        reason = f"its shapes are those of {first_few(names, FEW_ARCHITECTURES)}"
    raise ModelError(
        f"{path}: {reason}. Fix: name the architecture with --student (OpenAI's weights: --family"
        " openai)"
    )


def _same_shapes(described: Mapping[str, Any]) -> list[str]:
    """Return the architectures of open_clip whose configs agree with a description."""
    wanted = _signature(described)
    return [name for name in open_clip.known() if _signature(open_clip.config_of(name)) == wanted]


def _signature(config: Mapping[str, Any]) -> tuple:
    """Return what a config says of the shapes of both towers."""
    values: list[object] = [config.get("embed_dim")]
    for tower in ("vision_cfg", "text_cfg"):
        settings = config.get(tower) or {}
        values += [settings.get(key) for key in TOWER_KEYS]
        values.append("timm_model_name" in settings or "hf_model_name" in settings)
    return tuple(map(str, values))


def _build(config: dict, kind: str) -> nn.Module:
    if kind == "image-tower":
        return ImageTower(open_clip.image_tower(config))
    return open_clip.from_config(config)


def _fitting(model: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors in the form of a model, whose text tower may have a name of its own."""
    if hasattr(model, "text") and "positional_embedding" in tensors:
        tensors = renamed(tensors, TEXT_NAMES, r"text.\1")
    return matching.complete(model, tensors)


def _teacher(path: Path, imported: _Model, teacher: str | os.PathLike | None) -> EncoderCard:
    """Return the card of the teacher whose text tower an image tower uses."""
    if teacher is None:
        raise ModelError(
            f"{path}: is an image tower alone, which uses the text tower of its teacher. Fix: name"
            " the teacher with --teacher, e.g. ViT-L-14/openai for DIME-FM's students"
        )
    card = load_encoder(os.fspath(teacher), "cpu").card
    dim = imported.config["embed_dim"]
    if card.dim != dim:
        raise ModelError(
            f"{path}: its embeddings have {dim} numbers, those of the teacher {card.name} have"
            f" {card.dim}. Fix: name the teacher that it was distilled from"
        )
    return card


def _record(
    imported: _Model, layout: Family, path: Path, folder: Path, card: EncoderCard | None
) -> RunRecord:
    """Return the record of the run folder."""
    sizes = _sizes(imported.model)
    source = {"family": layout.name, "file": path.name, "sha256": sha256_file(path)}
    teacher = None if card is None else card.fields()
    teacher_at = None
    if card is not None and Path(card.name).exists():
        teacher_at = os.path.relpath(card.name, folder)
    return RunRecord(
        kind=imported.kind,
        model_cfg=imported.config,
        preprocess_cfg=imported.preprocess,
        teacher=teacher,
        teacher_at=teacher_at,
        teachers=[] if teacher is None else [teacher],
        image_parameters=sizes[0],
        text_parameters=sizes[1],
        parameters=weights_check.count(imported.model),
        libraries=libraries(),
        imported=source,
    )


def _sizes(model: nn.Module) -> tuple[int, int | None]:
    """Return the number of weights of the image tower and of the text tower."""
    image = weights_check.count(model.visual)
    if isinstance(model, ImageTower):
        return image, None
    both = image
    for name in ("logit_scale", "logit_bias"):
        if getattr(model, name, None) is not None:
            both += 1
    return image, weights_check.count(model) - both


@torch.no_grad()
def _logit_scale(imported: _Model, card: EncoderCard | None) -> float:
    if card is not None:
        return card.logit_scale
    return float(imported.model.logit_scale.float().exp())


def _write(imported: _Model, record: RunRecord, folder: Path) -> None:
    """Write the files of a run folder, its record last; on an error none of them is left."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / runs.KINDS[imported.kind]
    try:
        if imported.kind == "clip":
            settings = {"model_cfg": imported.config, "preprocess_cfg": imported.preprocess}
            write_text(folder / open_clip.CONFIG, to_json(settings))
        runs.save_tensors(imported.model.state_dict(), weights)
        write_text(folder / runs.FILE, record.to_json())
    except BaseException:
        for path in (folder / open_clip.CONFIG, weights, weights.with_name(weights.name + ".part")):
            path.unlink(missing_ok=True)
        raise
