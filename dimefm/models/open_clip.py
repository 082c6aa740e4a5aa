"""The only file that knows open_clip: architectures, weights, preprocessing and tokenizers.

Written against open_clip_torch 3.x. Nothing is downloaded unless a pretrained tag is named.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from open_clip.model import _build_vision_tower
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from dimefm import plugins
from dimefm.errors import ModelError, did_you_mean

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


@functools.cache
def _register() -> None:
    """Make ``models/students/*.json`` known to open_clip under their file names."""
    open_clip.add_model_config(plugins.ROOT / plugins.FOLDERS["students"][0])


def config_of(arch: str) -> dict:
    """Return a copy of the open_clip model config of ``arch``; raise ModelError with the nearest name."""
    _register()
    config = open_clip.get_model_config(arch)
    if config is None:
        raise ModelError(f"unknown architecture '{arch}': {did_you_mean(arch, open_clip.list_models())}")
    return copy.deepcopy(config)


def tags_of(arch: str) -> list[str]:
    """Return the pretrained tags that open_clip knows for ``arch``."""
    return list(open_clip.list_pretrained_tags_by_model(arch))


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def create(arch: str, weights: str | Path | None = None) -> nn.Module:
    """Return a model of a known architecture or ``local-dir:`` folder.

    ``weights`` is a pretrained tag (downloaded by open_clip), a file, or None: a folder's own weights, else random ones.
    Raises ModelError with open_clip's reason when it cannot be loaded.
    """
    local = arch.startswith("local-dir:")
    if not local:
        config_of(arch)
    try:
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tag = weights if isinstance(weights, str) else None
            model = open_clip.create_model(arch, tag, require_pretrained=tag is not None or (local and weights is None))
            if isinstance(weights, Path):
                open_clip.load_checkpoint(model, str(weights))
            return model.eval()
    except Exception as error:  # open_clip raises whatever its download and torch.load raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{arch}{f'/{weights}' if weights else ''}: cannot be loaded: {reason}") from error


def from_config(config: dict) -> nn.Module:
    """Build a whole CLIP from an open_clip model config with random weights."""
    if "text_cfg" not in config:
        raise ModelError(
            "this student has no text tower ('text_cfg'); choose an open_clip architecture to train both towers"
        )
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
        (Path(folder) / CONFIG).write_text(text, encoding="utf-8")
        try:
            with _quiet():
                return open_clip.create_model(folder_config(Path(folder)), load_weights=False)
        except Exception as error:  # open_clip and timm raise freely on impossible configs
            raise ModelError(f"model cannot be built from its config: {str(error).splitlines()[0]}") from error


def random(arch: str, seed: int) -> nn.Module:
    """Return ``arch`` with random weights drawn from ``seed``; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(arch)


def tokenizer_of(arch: str) -> Callable:
    """Return open_clip's tokenizer of an architecture or ``local-dir:`` folder."""
    _register()
    with _quiet():
        return open_clip.get_tokenizer(arch)


def tokenizer_for(config: dict) -> Callable:
    """Return the tokenizer of a model config that has no name of its own."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
        (Path(folder) / CONFIG).write_text(text, encoding="utf-8")
        return tokenizer_of(folder_config(Path(folder)))


def transform_of(preprocess: dict) -> Callable:
    """Return open_clip's evaluation transform (PIL image -> float32 [3, S, S]) for a preprocessing dict."""
    return image_transform_v2(PreprocessCfg(**preprocess), is_train=False)


def preprocess_of(model: nn.Module) -> dict:
    """Return the preprocessing of a model as plain JSON values."""
    fields = dataclasses.asdict(PreprocessCfg(**model.visual.preprocess_cfg))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def default_preprocess(size: int) -> dict:
    """Return open_clip's default preprocessing (CLIP mean and std, bicubic, shortest side) at ``size`` pixels."""
    fields = dataclasses.asdict(PreprocessCfg(size=size))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def image_tower(config: dict) -> nn.Module:
    """Build the image tower of a model config with random weights, projecting to ``config['embed_dim']``."""
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    try:
        with _quiet():
            tower = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
            if "timm_model_name" in vision and hasattr(tower, "set_input_size"):
                tower.set_input_size(vision.get("image_size", 224))
    except Exception as error:  # timm and open_clip raise freely on impossible configs
        raise ModelError(f"image tower cannot be built from {vision}: {str(error).splitlines()[0]}") from error
    return tower


def folder_config(folder: Path) -> str:
    """Return the ``local-dir:`` name of a folder in open_clip's layout."""
    return f"local-dir:{folder}"
