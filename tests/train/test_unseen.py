"""Pixels that the patches of a tower leave over: a run says so, and it is those that its rows do
not depend on.
"""

import json

import pytest
import torch
from torch import nn

from dimefm.models.student import build, patch_side, resolve
from dimefm.train.trainer import Trainer

TEXT = {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VIT = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TOWERS = {
    "vit": (VIT, 8),
    "convnext": ({"timm_model_name": "test_convnext", "timm_pool": "avg"}, 4),
    "resnet": ({"timm_model_name": "test_resnet", "timm_pool": "avg"}, 1),
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("size", [32, 34])
def test_rows_depend_on_all_pixels_but_those_left_over(tmp_path, name, size):
    vision, side = TOWERS[name]
    file = tmp_path / "student.json"
    file.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": TEXT}))
    model, _ = build(resolve(str(file), size), False, 0)
    assert patch_side(model) == side
    pixels = torch.randn(
        1, 3, size, size, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    model.eval().encode_image(pixels).sum().backward()
    seen = pixels.grad.abs().sum((0, 1)) > 0
    kept = size - size % side
    assert seen[:kept, :kept].all() and not seen[kept:].any() and not seen[:, kept:].any()


@pytest.mark.parametrize(
    "stem", [nn.Conv2d(3, 4, 4, 4, padding=1), nn.Conv2d(3, 4, 4, 2), nn.Linear(3, 4)]
)
def test_a_tower_without_patches_of_its_own_has_none(stem):
    model = nn.Module()
    model.visual = nn.Sequential(stem)
    assert patch_side(model) == 1


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (None, None),
        (24, None),
        (
            21,
            (
                "patches of 8 and never sees 5 pixels at the right and the lower edge; --image-size"
                " 16 or 24 leaves none over"
            ),
        ),
    ],
)
def test_a_run_says_so_in_one_line(world, tmp_path, size, says):
    lines = []
    Trainer(world.recipe(image_size=size), tmp_path / "run", False, lines.append)
    told = [line for line in lines if "patches" in line]
    assert len(told) == (says is not None)
    assert all(
        line.startswith(f"note: {world.tiny} cuts images of 21 pixels into") and says in line
        for line in told
    )


def test_a_text_tower_has_nothing_to_say(world, tmp_path):
    lines = []
    Trainer(world.text_recipe(), tmp_path / "run", False, lines.append)
    assert not any("patches" in line for line in lines)
