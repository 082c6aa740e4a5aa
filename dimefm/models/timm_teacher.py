"""Image models of timm as teachers: image rows alone, no text tower.

Their rows are what timm pools in front of the classifier. Such a teacher has no scale of its own on
cosines; DIME-FM's fixed 100 stands in its place.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from dimefm.cache import EncoderCard
from dimefm.errors import ModelError
from dimefm.models import config_check, timm_weights, weights_file
from dimefm.models.config_check import MOST_PARAMETERS
from dimefm.models.open_clip import quiet, reason_of
from dimefm.models.timm_image import PREFIX
from dimefm.models.weights_check import check_length, check_tensors, check_unpacked, count
from dimefm.runtime.text import first_few

LOGIT_SCALE = 100.0
FEW = 4  # names in a message
CLASSIFIERS = (
    "head.",
    "heads.",
    "head_dist.",
    "heads_dist.",
    "aux_head.",
    "fc.",
    "classifier.",
    "classif.",
    "last_linear.",
)
"""How the names of classifiers begin in the networks of timm; a teacher has none."""


class ImageTeacher(nn.Module):
    """A network of timm without its classifier."""

    def __init__(self, visual: nn.Module, preprocess: dict):
        super().__init__()
        self.visual = visual
        self.preprocess = preprocess
        self.activation = "standard"

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return rows [B, D], not normalised, of pixels [B, 3, S, S]."""
        return self.visual(pixels)


class NoText(nn.Module):
    """Stands where a text tower and its tokenizer would be; refuses every sentence."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def refusal(self) -> ModelError:
        """Return what is wrong with asking for the row of a sentence."""
        return ModelError(
            f"{self.name}: is an image model without a text tower, so it encodes no sentences."
            " Fix: name a teacher with both towers, or leave the sentences out"
        )

    def forward(self, sentences: object) -> Tensor:
        raise self.refusal()

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Raise ModelError."""
        raise self.refusal()


def is_image_only(card: EncoderCard) -> bool:
    """Tell whether a card is that of an image model without a text tower."""
    return card.name.startswith(PREFIX) and card.tokenizer is None


def refuse_unknown(text: str, name: str) -> None:
    """Raise ModelError unless the installed timm has a network of a name, with or without a tag."""
    base = name.partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base[:100], timm.list_models(), FEW)
        remedy = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ModelError(
            f"{text[:100]}: timm {timm.__version__} has no model '{base[:100]}'. Fix: {remedy}"
        )


def tags_of(name: str) -> list[str]:
    """Return the tags of pretrained weights that timm knows for a network."""
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]


def pretrained(name: str) -> ImageTeacher:
    """Return a network with timm's weights of the tag in its name, downloaded where needed.

    Raises ModelError when timm has no such weights, or they cannot be had.
    """
    full = timm_weights.full_name(name)
    timm_weights.fetch(full, "name " + f"{PREFIX}{name}/FILE")
    try:
        with quiet():
            network = timm.create_model(full, pretrained=True, num_classes=0)
    except Exception as error:  # timm and the hub raise whatever a download and a file lead to
        raise ModelError(
            f"{PREFIX}{name}: cannot be loaded: {reason_of(error)}. Fix: check the network, or name"
            f" {PREFIX}{name}/FILE"
        ) from error
    return _teacher(network, full)


def random(name: str, seed: int) -> ImageTeacher:
    """Return a network with random weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _teacher(_built(name), name)


def from_file(name: str, path: Path, stated: bool) -> ImageTeacher:
    """Return a network with the weights of a file; its classifier may be among them.

    ``stated`` says that the preprocessing is known otherwise. Raises ModelError when weights are
    missing, have another shape or no place, and when the tags of the network prepare images in
    different ways and the name has none of them.
    """
    if not stated:
        _refuse_ambiguous(name, path)
    network = _built(name)
    parameters = count(network)
    check_length(path, parameters)
    check_unpacked(path, parameters)
    expected = network.state_dict()
    try:
        tensors = weights_file.state_dict_of(path)
    except ModelError:
        raise
    except Exception as error:  # safetensors and torch raise whatever a damaged file leads to
        raise ModelError(
            f"{path}: cannot be loaded: {reason_of(error)}. Fix: fetch the file again"
        ) from error
    check_tensors(path, tensors.values(), parameters)
    tensors = weights_file.without_prefixes(tensors, expected)
    _refuse_unmatched(tensors, expected, name, path)
    network.load_state_dict({key: tensors[key] for key in expected})
    return _teacher(network, name)


def _refuse_unmatched(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], name: str, path: Path
) -> None:
    further = []
    for key in tensors:
        if key not in expected and not key.startswith(CLASSIFIERS):
            further.append(key)
    missing = [key for key in expected if key not in tensors]
    shapes = []
    for key, tensor in expected.items():
        if key in tensors and tensors[key].shape != tensor.shape:
            shapes.append(key)
    faults = []
    titles = ("missing", "of another shape", f"of no part of {name}")
    for title, keys in zip(titles, (missing, shapes, further), strict=True):
        if keys:
            faults.append(f"{len(keys)} {title} ({first_few(sorted(keys), FEW)})")
    if faults:
        raise ModelError(
            f"{path}: does not fit timm's {name}: weights {', '.join(faults)}. Fix: name the"
            " network that the file is of"
        )


def _refuse_ambiguous(name: str, path: Path) -> None:
    """Raise ModelError when a name has no tag, and its tags prepare images in different ways."""
    tags = tags_of(name)
    if "." in name or not tags:
        return
    ways: dict[str, str] = {}
    for tag in tags:
        preprocess = preprocess_of(f"{name}.{tag}")
        ways.setdefault(str(sorted(preprocess.items(), key=str)), tag)
    if len(ways) > 1:
        examples = first_few(list(ways.values()), FEW)
        raise ModelError(
            f"{PREFIX}{name}/{path}: the tags of {name} prepare images in {len(ways)} ways"
            f" ({examples}). Fix: name the tag that the file holds, {PREFIX}{name}.TAG/FILE, or an"
            " open_clip_config.json with --preprocess FILE"
        )


def _built(name: str) -> nn.Module:
    """Return a network with random weights and without a classifier."""
    try:
        with quiet():
            with torch.device("meta"):
                parameters = count(timm.create_model(name, num_classes=0))
            if parameters <= MOST_PARAMETERS:
                return timm.create_model(name, num_classes=0)
    except Exception as error:  # timm raises whatever a network's code raises
        raise ModelError(
            f"{PREFIX}{name}: cannot be built: {reason_of(error)}. Fix: name another network"
        ) from error
    raise ModelError(
        f"{PREFIX}{name}: has {parameters:,} weights, expected at most {MOST_PARAMETERS:,}. Fix:"
        " name another network"
    )


def _teacher(network: nn.Module, name: str) -> ImageTeacher:
    return ImageTeacher(network.eval(), preprocess_of(name))


def preprocess_of(name: str) -> dict:
    """Return how the weights of a network see images, in the words of a card.

    Raises ModelError for what these words do not express.
    """
    settings = timm.get_pretrained_cfg(name)
    config = resolve_data_config({}, pretrained_cfg=settings.to_dict())
    _, height, width = config["input_size"]
    mode = config["crop_mode"]
    if mode not in ("center", "squash") or config["interpolation"] not in ("bicubic", "bilinear"):
        raise ModelError(
            f"{PREFIX}{name}: its images are prepared by crop_mode '{mode}' and"
            f" '{config['interpolation']}', expected center or squash, and bicubic or bilinear."
            " Fix: name an open_clip_config.json with --preprocess FILE"
        )
    preprocess: dict[str, Any] = {
        "size": height if height == width else [height, width],
        "mode": "RGB",
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "resize_mode": "shortest" if mode == "center" else "squash",
        "fill_color": 0,
    }
    sides = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    if mode == "center" and height != width:
        raise ModelError(
            f"{PREFIX}{name}: takes images of {height} x {width} pixels, expected squares. Fix:"
            " name an open_clip_config.json with --preprocess FILE"
        )
    if sides != [height, width]:
        preprocess["resize_to"] = sides[0] if mode == "center" else sides
    return config_check.preprocessing(preprocess, f"{PREFIX}{name}")
