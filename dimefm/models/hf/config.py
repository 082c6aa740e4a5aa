"""The ``config.json`` of a folder of transformers, checked before anything is built from it.

transformers takes from a config whatever it finds there: other files, code, names on the hub. So a
config class gets a copy with its own keys alone, whose values are numbers, short words and short
lists in their bounds. A model is counted on the meta device before it is allocated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dimefm.errors import ModelError
from dimefm.models.config_check import MOST_PARAMETERS
from dimefm.models.hf.families import CONFIG, FAMILIES, TEXT_TYPES, VISION_TYPES, Family
from dimefm.models.open_clip import reason_of
from dimefm.models.weights_check import count
from dimefm.storage.small_files import Unreadable, read_json

MOST_LAYERS = 256
MOST_NUMBER = 2_000_000  # tokens of a vocabulary
MOST_LETTERS = 100
MOST_ITEMS = 64  # of a list
CODE_KEYS = ("auto_map", "custom_pipelines", "quantization_config")
TOWERS = ("vision_config", "text_config")
FORMER = ("vision_config_dict", "text_config_dict")
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
TIMM_KEYS = ("architecture", "do_pooling", "model_args", "hidden_size", "num_classes")
TIMM_ARGUMENTS = ("num_classes", "img_size", "global_pool", "in_chans", "patch_size")
TIMM_NAME = re.compile(r"[A-Za-z0-9_]{1,99}(\.[A-Za-z0-9_]{1,99})?")
LAYER_WORDS = ("layers", "depth", "repeats")


@dataclass(frozen=True)
class FolderConfig:
    """The checked config of a folder: its family, and an object of the family's config class."""

    family: Family
    model_type: str
    values: Any

    @property
    def text(self) -> Any:
        """The config of the text tower."""
        return self.values.text_config

    @property
    def masks_padding(self) -> bool:
        """Whether the text tower is told which tokens are padding.

        CLIP's never looks behind the end of a text, which is also its padding.
        """
        return self.family.masks_padding and self.text.model_type != "clip_text_model"

    @property
    def vision(self) -> Any:
        """The config of the image tower."""
        return self.values.vision_config


def read_config(folder: Path) -> FolderConfig:
    """Return the checked config of a folder; raise ModelError for what is not allowed in it."""
    path = folder / CONFIG
    content = read_object(path)
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        raise _unknown_type(content, path)
    _refuse_code(content, str(path))

    import transformers

    config_class = getattr(transformers, family.config, None)
    if config_class is None:
        raise ModelError(
            f"{path}: transformers {transformers.__version__} has no {family.config}. Fix: pip"
            " install -U transformers"
        )
    values = _values(content, config_class, str(path))
    try:
        config = config_class.from_dict(values)
    except Exception as error:  # transformers raises whatever an odd value leads to
        raise ModelError(
            f"{path}: is no {family.config}: {reason_of(error)}. Fix: restore the file"
        ) from error
    return FolderConfig(family, str(content["model_type"]), config)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; raise ModelError when it holds none."""
    try:
        content = read_json(path)
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read: {reason}. Fix: restore the file") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is no JSON object. Fix: restore the file")
    return content


def _unknown_type(content: Mapping, path: Path) -> ModelError:
    """Return the complaint about the ``model_type`` of a config."""
    model_type = str(content.get("model_type"))[:MOST_LETTERS]
    return ModelError(
        f"{path}: 'model_type' is '{model_type}', expected one of {', '.join(sorted(FAMILIES))},"
        " whose models encode images and texts. Fix: name another model"
    )


def refuse_too_large(config: FolderConfig, path: Path) -> int:
    """Return the number of weights of a model, counted without memory.

    Raises ModelError when the model cannot be built, or has too many.
    """
    try:
        with torch.device("meta"):
            model = model_class(config)(config.values)
    except Exception as error:  # transformers and timm raise freely on impossible configs
        raise ModelError(
            f"{path}: no model can be built from it: {reason_of(error)}. Fix: restore the file"
        ) from error
    parameters = count(model)
    if parameters > MOST_PARAMETERS:
        raise ModelError(
            f"{path}: describes a model of {parameters:,} parameters, expected at most"
            f" {MOST_PARAMETERS:,}. Fix: correct it"
        )
    return parameters


def model_class(config: FolderConfig) -> type[nn.Module]:
    """Return the class of transformers of a config's models."""
    import transformers

    return getattr(transformers, config.family.model)


def _refuse_code(content: Mapping, where: str) -> None:
    """Raise ModelError for keys that ask for code, or for weights of another form."""
    for key in CODE_KEYS:
        if content.get(key):
            raise ModelError(
                f"{where}: '{key}' asks for code that is not run, or for weights that are not"
                " plain tensors. Fix: use a model without it"
            )


def _values(content: Mapping, config_class: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """Return the values of a config that are its class's own, those of its towers included."""
    _refuse_code(content, where)
    keys = _keys_of(config_class)
    values: dict[str, Any] = {"model_type": config_class.model_type}
    for name, value in content.items():
        if name in (*TOWERS, *FORMER) and isinstance(value, Mapping):
            tower = name.removesuffix("_dict")
            inner_class = _tower_class(value, config_class, tower, where)
            values[name] = _values(value, inner_class, where, f"{name}.")
        elif name in keys and name not in TOWERS:
            values[name] = _checked(value, f"{prefix}{name}", where)
    if config_class.model_type == "timm_wrapper":
        _check_timm(values, prefix, where)
    return values


def _keys_of(config_class: Any) -> set[str]:
    """Return the keys of a config class that describe a model."""
    if config_class.model_type == "timm_wrapper":
        return set(TIMM_KEYS)
    import transformers

    keys = set(config_class().to_dict()) - set(transformers.PretrainedConfig().to_dict())
    return keys | set(TOKEN_KEYS)


def _tower_class(tower: Mapping, config_class: Any, name: str, where: str) -> Any:
    """Return the config class of one tower."""
    known = getattr(config_class, "sub_configs", {}).get(name)
    if known is not None and known.__name__ != "AutoConfig":
        return known
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    allowed = VISION_TYPES if name == "vision_config" else TEXT_TYPES
    model_type = str(tower.get("model_type"))[:MOST_LETTERS]
    if model_type == "clip":  # of former versions
        model_type = "clip_vision_model" if name == "vision_config" else "clip_text_model"
    if model_type not in allowed:
        raise ModelError(
            f"{where}: '{name}.model_type' is '{model_type}', expected one of"
            f" {', '.join(allowed)}. Fix: name another model"
        )
    return CONFIG_MAPPING[model_type]


def _check_timm(values: dict[str, Any], prefix: str, where: str) -> None:
    """Raise ModelError unless a tower is an architecture of the installed timm, and no more."""
    name = values.get("architecture")
    if not isinstance(name, str) or not TIMM_NAME.fullmatch(name) or not timm.is_model(name):
        raise ModelError(
            f"{where}: '{prefix}architecture' is '{str(name)[:MOST_LETTERS]}', which is no model"
            f" of timm {timm.__version__}. Fix: pip install -U timm, or use another model"
        )
    arguments = values.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise ModelError(f"{where}: '{prefix}model_args' is no table. Fix: restore the file")
    for key in arguments:
        if key not in TIMM_ARGUMENTS:
            raise ModelError(
                f"{where}: '{prefix}model_args.{key[:MOST_LETTERS]}' is no argument that comes"
                f" with a model; expected some of {', '.join(TIMM_ARGUMENTS)}. Fix: use another"
                " model"
            )


def _checked(value: Any, name: str, where: str) -> Any:
    """Return a value whose numbers, words and lists are in their bounds."""
    fault = _fault(value, name)
    if fault:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise ModelError(f"{where}: '{name}' is {shown}, expected {fault}. Fix: correct it")
    return value


def _fault(value: Any, name: str) -> str:
    """Return what was expected of a value that is out of bounds, "" for a value that is not."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return "" if len(value) <= MOST_LETTERS else f"at most {MOST_LETTERS} letters"
    if isinstance(value, int | float):
        is_depth = any(word in name for word in LAYER_WORDS)
        most = MOST_LAYERS if is_depth else MOST_NUMBER
        within = math.isfinite(value) and -MOST_NUMBER <= value <= most
        return "" if within else f"a number of at most {most:,}"
    if isinstance(value, Mapping):
        value = list(value.values())
    if len(value) > MOST_ITEMS:
        return f"at most {MOST_ITEMS} items"
    return next((fault for item in value if (fault := _fault(item, name))), "")
