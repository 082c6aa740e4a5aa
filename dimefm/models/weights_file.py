"""Read weights files as training programs write them, and load them into a model of open_clip.

A file holds a state dict, alone or under a name like ``state_dict``. Programs that wrap the model
put a prefix before its names. Both are removed:

=====================  ==============================================================
``state_dict``         open_clip, timm, Lightning
``model``              DINO, MAE, many others
``image_state_dict``   DIME-FM: an image tower alone
``state_dict_ema``     timm: averaged weights next to the last ones; these are taken
``module.``            DistributedDataParallel, also torch's averaged model
``_orig_mod.``         ``torch.compile``, also inside a name
``model.``             Lightning and other classes around the model; also ``net.``, ``clip.``
=====================  ==============================================================

Only tensors are read: safetensors, or torch's format without objects.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models.weights_check import check_tensors, count
from dimefm.runtime import console

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
LAST = ("state_dict", "model", "model_state_dict", "module", "image_state_dict", "net")
PREFIXES = ("module.", "model.", "net.", "clip.", "clip_model.")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
COUNTER = "n_averaged"  # of torch's averaged model
DEPTH = 3  # of state dicts inside one another
POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")
NUMPY = (".npz", ".npy")  # big_vision's weights
NO_TEXT_POSITIONS = "text.transformer.embeddings.position_ids"  # of older transformers


def load(model: nn.Module, path: Path) -> None:
    """Load a weights file into a model of open_clip; every weight must be there.

    Raises ModelError for a file that is no state dict or has far too many numbers, and whatever
    torch raises for weights that are damaged or do not fit.
    """
    if path.suffix in NUMPY:
        open_clip.load_checkpoint(model, str(path))
        return
    tensors = state_dict_of(path)
    check_tensors(path, tensors.values(), count(model))
    tensors = without_prefixes(tensors, model.state_dict())
    lengths = _position_counts(tensors)
    tensors = _as_open_clip(tensors, model)
    for name, length in _position_counts(tensors).items():
        if length != lengths.get(name, length):
            console.note(
                f"weights: '{name}' of {path} is resized from {lengths[name]} to {length} places:"
                " the file is of another image size or context length"
            )
    model.load_state_dict(tensors)


def state_dict_of(path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file holds, under whatever name.

    Averaged weights are taken where a file has them, too, as timm does; a note says so. Raises
    ModelError when there is no state dict.
    """
    return state_dict_in(_content(path), path)


def state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what the file ``path`` holds, as :func:`state_dict_of` does."""
    for _ in range(DEPTH):
        name = _name_of_state_dict(content)
        if name is None:
            break
        others = [other for other in LAST if other != name and _is_table(content.get(other))]
        if name in AVERAGED and others:
            console.note(
                f"weights: '{name}' of {path}, which are averaged; it also has '{others[0]}'"
            )
        content = content[name]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if _is_tensor(value)}
    if not tensors:
        raise ModelError(
            f"{path}: cannot be loaded: it holds no state dict. Fix: save the model's state_dict"
            " as .safetensors"
        )
    return tensors


def without_prefixes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors under the names of the model itself, given the names that it expects.

    A prefix goes where all names have it. Where only some have it, the other tensors belong to what
    is around the model, if those with the prefix are all that the model expects.
    """
    named = {}
    for name, tensor in tensors.items():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        named[name] = tensor
    named.pop(COUNTER, None)
    for _ in range(DEPTH):
        shorter = _without_prefix(named, expected)
        if shorter is None:
            break
        named = shorter
    return named


def _without_prefix(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    for prefix in PREFIXES:
        inside = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        if inside and (len(inside) == len(tensors) or expected.keys() <= inside.keys()):
            return inside
    return None


def _as_open_clip(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights of other programs under open_clip's names, in this model's form.

    The steps are those of ``open_clip.load_checkpoint``, which reads a file by itself.
    """
    tensors = convert_state_dict(model, tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if name in tensors and own is not None and own.ndim != tensors[name].ndim:
            tensors[name] = tensors[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_bias" not in tensors:
        tensors["logit_bias"] = torch.zeros_like(model.logit_bias)
    if not hasattr(model, NO_TEXT_POSITIONS):
        tensors.pop(NO_TEXT_POSITIONS, None)
    resize_pos_embed(tensors, model)
    resize_text_pos_embed(tensors, model)
    return tensors


def _position_counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: len(tensors[name]) for name in POSITIONS if name in tensors}


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if _is_torchscript(path):
        raise ModelError(
            f"{path}: cannot be loaded: the file is damaged, or holds other things than plain"
            " tensors: it is a TorchScript program, as OpenAI's own .pt files are. Fix: make a run"
            " of it with dimefm import, or fetch the weights of the tag as .safetensors"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False  # torch's older format is no zip file


def _name_of_state_dict(content: object) -> str | None:
    """Return under which name a table holds a state dict, None when it is one."""
    if not isinstance(content, Mapping):
        return None
    for name in (*AVERAGED, *LAST):
        if _is_table(content.get(name)):
            return name
    return None


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
