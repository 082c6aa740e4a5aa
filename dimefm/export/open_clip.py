"""Export to a folder that open_clip loads as ``local-dir:FOLDER``, without dimefm.

It holds ``open_clip_config.json``, ``open_clip_model.safetensors`` and, where the text tower has a
tokenizer of Hugging Face, the tokenizer's files.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from dimefm.errors import ModelError
from dimefm.export.formats import Options, Variant
from dimefm.export.whole import WholeClip
from dimefm.models import config_check, open_clip
from dimefm.models.encoder import Encoder
from dimefm.models.hf.model import HfClip
from dimefm.runs.folder import save_tensors
from dimefm.storage.files import to_json

WEIGHTS = "open_clip_model.safetensors"
USAGE = "open_clip.md"
LEAST_COSINE = 0.99999
TAGS = {"library_name": "open_clip", "pipeline_tag": "zero-shot-image-classification"}


def check(whole: WholeClip, options: Options) -> None:
    """Raise ModelError for a model that open_clip's config cannot express."""
    fault, remedy = _fault(whole)
    if fault:
        raise ModelError(f"{whole.name}: cannot be exported to open_clip: {fault}. Fix: {remedy}")


def _fault(whole: WholeClip) -> tuple[str, str]:
    """Return why open_clip's config cannot express a model, and the way that works."""
    config = whole.model_cfg
    if config is None:
        if isinstance(whole.image, HfClip):
            return "it is a model of transformers", "copy its folder, which transformers loads"
        return "one of its towers was not built by open_clip", "use --to hf"
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        reason = f"its text tower {text['hf_model_name']} is of transformers, which downloads it"
        return reason, "use --to web with --labels FILE"
    if (text.get("tokenizer_kwargs") or {}).get("bpe_path"):
        return "its tokenizer reads a file of its own ('bpe_path')", "use --to hf"
    if "pruned" in config["vision_cfg"] or "pruned" in text:
        return "its layers differ in heads or hidden units", "use --to onnx"
    size = _fixed_size(whole)
    if size:
        reason = f"open_clip builds its image tower for images of {size} pixels alone"
        return reason, "use --to hf or --to onnx"
    is_one_model = whole.image is whole.text
    if "multimodal_cfg" in config and not is_one_model:
        return "its text tower is that of a CoCa, which has a decoder", "use --to onnx"
    image, text_activation = whole.activations()
    if image and text_activation and image != text_activation:
        reason = (
            f"its image tower computes {_words(image)} and its text tower {_words(text_activation)}"
            ", and a config of open_clip has one activation for both"
        )
        remedy = "use --to hf or --to onnx"
        if text_activation == "quick_gelu":
            remedy += ", or train a student with --student NAME-quickgelu"
        return reason, remedy
    return "", ""


def _fixed_size(whole: WholeClip) -> int:
    """Return for which size open_clip builds a timm tower that was resized to another, else 0."""
    if not whole.has_timm_tower or not hasattr(whole.visual.trunk, "set_input_size"):
        return 0
    settings = timm.get_pretrained_cfg(whole.visual.trunk.default_cfg["architecture"])
    usual = 0 if settings is None else settings.input_size[-1]
    return 0 if usual == max(_sides(whole.preprocess["size"])) else usual


def _words(activation: str) -> str:
    return "QuickGELU" if activation == "quick_gelu" else "GELU"


def write(whole: WholeClip, folder: Path, options: Options) -> dict[str, Any]:
    """Write the config, the weights and the tokenizer's files."""
    config = _config(whole)
    settings = {"model_cfg": config, "preprocess_cfg": whole.preprocess}
    (folder / open_clip.CONFIG).write_text(to_json(settings), encoding="utf-8")
    save_tensors(_tensors(whole), folder / WEIGHTS, {"format": "pt"})
    if config["text_cfg"].get("hf_tokenizer_name"):
        whole.tokenizer.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    config_check.read_model_file(folder / open_clip.CONFIG)
    return {"model_cfg": config}


def _config(whole: WholeClip) -> dict[str, Any]:
    assert whole.model_cfg is not None
    config = copy.deepcopy(whole.model_cfg)
    config["text_cfg"].pop("hf_model_name", None)
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    return config


def _tensors(whole: WholeClip) -> dict[str, Tensor]:
    """Return the weights under open_clip's names, contiguous and each with memory of its own."""
    if whole.image is whole.text:
        named = dict(whole.image.state_dict())
    else:
        assert whole.model_cfg is not None
        prefix = "text." if whole.model_cfg.get("custom_text") else ""
        named = {f"visual.{name}": tensor for name, tensor in whole.visual_state().items()}
        for name, tensor in whole.text_state().items():
            named[prefix + name] = tensor
        named |= whole.scalars()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}


def variants(whole: WholeClip, folder: Path, options: Options) -> list[Variant]:
    """Return the written folder as open_clip itself loads it."""
    model, transform, tokenizer = open_clip.as_users_load(folder)
    preprocess = open_clip.preprocess_of(model)
    _check_preprocess(whole.preprocess, preprocess)
    card = dataclasses.replace(whole.encoder.card, name=str(folder), preprocess=preprocess)
    encoder = Encoder(
        card=card,
        image_model=model.requires_grad_(False),
        text_model=model,
        preprocess=transform,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
    )
    return [Variant("open_clip", encoder, LEAST_COSINE)]


def _check_preprocess(before: dict, after: dict) -> None:
    """Raise ModelError where open_clip would prepare images in another way than the model."""
    for key in before:
        if _sides(before[key]) != _sides(after.get(key)):
            raise ModelError(
                f"preprocessing: open_clip would use {key} = {after.get(key)}, expected"
                f" {before[key]}. Fix: use --to onnx"
            )


def _sides(value: Any) -> Any:
    """Return a value of a preprocessing in one spelling: a size is two sides."""
    if isinstance(value, int):
        return [value, value]
    return list(value) if isinstance(value, tuple) else value
