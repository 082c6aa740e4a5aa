"""For each architecture with heads of 64 channels, shapes tell all of its config."""

import open_clip as upstream
import pytest
import torch

from dimefm.models import open_clip
from dimefm.models.weights import shapes

USUAL = {"image_size", "layers", "width", "patch_size", "mlp_ratio", "head_width"}
USUAL_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "proj_bias"}
MOST_WIDTH = 1024
SLOW = ("RN50x16", "RN50x64", "RN101")  # and their namesakes


def is_usual(config):
    vision = {key for key, value in config["vision_cfg"].items() if value is not None}
    text = config["text_cfg"]
    if not vision <= USUAL or not text.keys() <= USUAL_TEXT:
        return False
    is_square = isinstance(config["vision_cfg"]["image_size"], int)
    heads_are_64 = text["width"] == 64 * text["heads"]
    is_small = config["vision_cfg"]["width"] <= MOST_WIDTH
    return is_square and heads_are_64 and is_small


NAMES = [
    name
    for name in open_clip.known()
    if is_usual(open_clip.config_of(name)) and not name.startswith(SLOW)
]


def test_there_are_such_architectures():
    assert {"ViT-B-32", "RN50", "TinyCLIP-ViT-8M-16-Text-3M", "ViT-T-16"} <= set(NAMES)
    assert len(NAMES) >= 20


@pytest.mark.parametrize("name", NAMES)
def test_shapes_tell_the_config(name):
    config = open_clip.config_of(name)
    keys = ("embed_dim", "vision_cfg", "text_cfg")
    with torch.device("meta"):
        model = upstream.CLIP(**{key: config[key] for key in keys})
    told = shapes.model_config(model.state_dict())
    assert told["embed_dim"] == config["embed_dim"]
    for tower in keys[1:]:
        stated = {key: value for key, value in config[tower].items() if value is not None}
        stated.pop("head_width", None)
        if stated.get("mlp_ratio") == 4.0:
            del stated["mlp_ratio"]
        assert told[tower] == stated
