"""Pixels that the patches of a tower leave over: a run says so, and it is those that its rows do
not depend on.
"""

import json
import re

import pytest
import torch
from torch import nn

from dimefm.models.student import build, patch_side, resolve
from dimefm.train import tasks
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


@pytest.mark.parametrize(
    ("name", "samples", "told"),
    [
        ("timm/test_resnet.r160_in1k", 100_000, "the pretrained ones that 'r160_in1k' names"),
        ("timm/test_resnet", 10, ""),
        ("ResNet10t-32", 280, "the 4.9 M weights of ResNet10t-32 start from random ones, and 280"),
        ("ResNet10t-32", 10_000, ""),
        ("ResNet-mini-32", 10, ""),
    ],
)
def test_what_a_student_starts_from_and_how_few_its_images_are_is_said(name, samples, told):
    spec = resolve(name, 32, 48)
    model, preprocess = build(spec, False, 0)
    task = tasks.Task("image-tower", spec, model, preprocess, batches=None)
    lines = tasks.notes(task, samples)
    assert len(lines) == (told != "")
    for line in lines:
        assert line.startswith("note: ") and told in line
        assert line.count("--student ") == 1


def test_the_small_students_of_the_note_have_its_sizes():
    for name, millions in re.findall(r"([A-Za-z0-9-]+) \(([0-9.]+) M\)", tasks.SMALL_STUDENTS):
        model, _ = build(resolve(name), False, 0)
        weights = sum(weights.numel() for weights in model.visual.parameters())
        assert round(weights / 1e6, 1) == float(millions)
