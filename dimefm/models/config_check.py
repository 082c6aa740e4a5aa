"""Check a model config that came with data, before open_clip builds anything from it.

Such a config is in ``open_clip_config.json`` of a folder, in ``run.json``, or in a student's JSON
file. It may have the keys of :mod:`dimefm.models.config_schema`, with values in their bounds, and
describe a model of at most ``MOST_PARAMETERS``. A refusal names the key.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import timm
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dimefm.errors import ModelError, did_you_mean
from dimefm.models import config_size
from dimefm.models.config_schema import (
    CardPreprocessing,
    ModelConfig,
    ModelFile,
    Preprocessing,
    Table,
)
from dimefm.storage.small_files import Unreadable, read_json

MOST_PARAMETERS = 6_000_000_000  # open_clip's largest model has 5.0 billion
MOST_STUDENT_PARAMETERS = 1_000_000_000
MOST_PATCHES = 16_384  # of an image
MOST_BYTES = 1 << 20  # of a config file
EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a table",
    "string_pattern_mismatch": "a plain name",
    "string_type": "a text",
}
"""Words for what a value should have been, by pydantic's type of the fault."""
IMAGE_KEYS = ("embed_dim", "vision_cfg", "quick_gelu")
TEXT_KEYS = ("embed_dim", "text_cfg", "quick_gelu")
Schema = TypeVar("Schema", bound=Table)


def read_model_file(path: Path) -> tuple[dict, dict]:
    """Return the model config and the preprocessing of an ``open_clip_config.json``, checked.

    Raises ModelError when the file cannot be read, or has anything that is not allowed.
    """
    content = read_config(path)
    config = content.get("model_cfg")
    if not isinstance(config, dict):
        raise ModelError(
            f"{path}: cannot be read as an open_clip config: 'model_cfg' is no object. Fix: restore"
            " the file"
        )
    missing = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in config]
    if missing:
        raise ModelError(
            f"{path}: 'model_cfg' has no {' and no '.join(missing)}; expected embed_dim, vision_cfg"
            " and text_cfg. Fix: restore the file"
        )
    validate(ModelFile, content, f"{path}")
    preprocess = preprocessing(content.get("preprocess_cfg", {}), f"{path}")
    return model_config(config, f"{path}"), preprocess


def read_config(path: Path) -> dict:
    """Return the JSON object of a config file, an empty one for any other value.

    Raises ModelError when the file cannot be read.
    """
    try:
        content = read_json(path, MOST_BYTES)
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{path}: cannot be read as an open_clip config: {reason}. Fix: restore the file"
        ) from error
    return content if isinstance(content, dict) else {}


def model_config(
    config: object, where: str, keys: Sequence[str] = (), most: int = MOST_PARAMETERS
) -> dict:
    """Return a copy of a model config that came with data; ``where`` names the file it came from.

    Where ``keys`` are given, only these are looked at and returned, and all must be there. Raises
    ModelError, naming the key, for anything that is not allowed, and for a model of more than
    ``most`` parameters.
    """
    if keys and isinstance(config, Mapping):
        config = {name: config[name] for name in keys if name in config}
    checked = validate(ModelConfig, config, where, "model_cfg")
    assert isinstance(config, Mapping)
    missing = [name for name in keys if getattr(checked, name) is None]
    if missing:
        raise ModelError(f"{where}: 'model_cfg' has no '{missing[0]}'. Fix: restore the file")
    _check_timm_name(checked, where)
    _check_size(checked, where, most)
    result = copy.deepcopy(dict(config))
    for tower in ("text_cfg", "multimodal_cfg"):
        if result.get(tower) is not None:
            result[tower].pop("hf_model_name", None)
    return result


def parameters(config: dict) -> int:
    """Return about how many parameters the model of a checked config has, never too many."""
    return config_size.parameters(ModelConfig.model_validate(config))


def preprocessing(settings: object, where: str, whole: bool = False) -> dict:
    """Return a copy of a preprocessing that came with data, without values that are None.

    Raises ModelError, naming the key, for anything that is not allowed; where it must be
    ``whole``, also for a key that it lacks.
    """
    validate(CardPreprocessing, settings, where, "preprocess_cfg")
    assert isinstance(settings, Mapping)
    given = {name: value for name, value in settings.items() if value is not None}
    missing = Preprocessing.model_fields.keys() - given.keys()
    if whole and missing:
        raise ModelError(
            f"{where}: 'preprocess_cfg' has no {' and no '.join(sorted(missing))}. Fix: restore the"
            " file"
        )
    return given


def validate(schema: type[Schema], value: object, where: str, prefix: str = "") -> Schema:
    """Return a value as its schema; raise ModelError, naming the key, for the first fault.

    ``where`` names the file that the value came from, and ``prefix`` its key there.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        telling = [fault for fault in faults if not fault["type"].endswith("_type")]
        raise ModelError(_complaint((telling or faults)[0], value, where, prefix)) from None


def _complaint(fault: ErrorDetails, value: object, where: str, prefix: str) -> str:
    key = ".".join([prefix] * bool(prefix) + _key(fault["loc"], value))[:100]
    if fault["type"] in ("extra_forbidden", "none_required"):
        return (
            f"{where}: '{key}' is no key of a model that is loaded from files alone: nothing"
            " that comes with a model may run, open other files or download. Fix: remove the key,"
            " or use another model"
        )
    if fault["type"] == "missing":
        return f"{where}: has no '{key}'. Fix: restore the file"
    reason = EXPECTED.get(fault["type"]) or fault["msg"].removeprefix("Input should be ")
    got = repr(fault["input"])
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return f"{where}: '{key}' is {got}, expected {reason}. Fix: correct it"


def _key(location: Sequence[int | str], value: Any) -> list[str]:
    """Return the parts of a fault's location that are keys of the value, not names of types."""
    keys = []
    for part in location:
        inside = isinstance(value, list) and isinstance(part, int)
        if not inside and not (isinstance(value, dict) and part in value):
            continue
        keys.append(str(part))
        value = value[part]
    return keys or [str(part) for part in location[-1:]]


def _check_timm_name(config: ModelConfig, where: str) -> None:
    """Raise ModelError unless the installed timm has the architecture of the image tower."""
    name = config.vision_cfg.timm_model_name if config.vision_cfg is not None else None
    if name and not timm.is_model(name):
        raise ModelError(
            f"{where}: unknown timm model '{name}': {did_you_mean(name, timm.list_models())}"
        )


def _check_size(config: ModelConfig, where: str, most: int) -> None:
    tower = config.vision_cfg
    if tower is not None and not tower.timm_model_name and isinstance(tower.layers, int):
        patches = config_size.patches(tower)
        if patches > MOST_PATCHES:
            raise ModelError(
                f"{where}: cuts an image into {patches:,} patches, expected at most"
                f" {MOST_PATCHES:,}. Fix: correct 'vision_cfg.image_size' or 'patch_size'"
            )
    count = config_size.parameters(config)
    if count > most:
        raise ModelError(
            f"{where}: describes a model of {count:,} parameters, expected at most {most:,}. Fix:"
            " correct layers, width and vocab_size"
        )
