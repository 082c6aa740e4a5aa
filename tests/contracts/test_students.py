"""What every student keeps, also one that somebody adds next year: parametrised over what is found
on disk.

Each image tower and each text tower is built as its file says, at a small image size, learns for
two steps, is saved, and gives the same rows as evaluation loads it. Files may share a tower; it is
tested once, under the first name that has it. The largest towers are tests marked slow, and so are
bridges.
"""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dimefm import plugins
from dimefm.cli.train import command
from dimefm.errors import ModelError
from dimefm.losses import Features, LossConfig, Objective
from dimefm.models import open_clip, student
from dimefm.models.loading import load_encoder
from dimefm.models.towers import ImageTower
from dimefm.recipe import Recipe
from dimefm.runs import folder
from dimefm.storage.files import to_json, write_text
from dimefm.train.optim import adamw
from dimefm.train.student import Student, projection_of

NAMES = plugins.names("students")
PAGE = Path(__file__).parents[2] / "docs/students.md"
LARGE = {  # the default tests have a smaller tower like each of these
    "image": (
        *(
            "dime-Swin-T",
            "dime-ViT-B-32",
            "TinyCLIP-ViT-39M-16-Text-19M",
            "TinyCLIP-ViT-61M-32-Text-29M",
        ),
        *("TinyCLIP-ViT-40M-32-Text-19M", "TinyCLIP-ResNet-30M-Text-29M"),
    ),
    "text": ("dime-Swin-T", "TinyCLIP-ResNet-19M-Text-19M", "TinyCLIP-ResNet-30M-Text-29M"),
}
PIXELS, BATCH = 64, 3  # of a side at most; a step
DIM = 128  # the tiny teacher's
LOSS = [LossConfig("dime.vl", 0.7), LossConfig("dime.pvl", 0.3), LossConfig("dime.udist", 0.1)]
SENTENCES = ["a red square", "two dogs on a lawn, seen from above", "a photo of a cat"]


def config_of(name):
    return json.loads(plugins.path("students", name).read_text(encoding="utf-8"))


def towers(kind):
    """Return the first name that has each tower of ``kind`` "image" or "text", the large ones
    marked slow.
    """
    first: dict = {}
    for name in NAMES:
        config = config_of(name)
        first.setdefault(
            json.dumps(config["vision_cfg" if kind == "image" else "text_cfg"], sort_keys=True),
            name,
        )
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE[kind] else [])
        for name in sorted(first.values())
    ]


def image_student(name, bridge):
    """Return (student, its spec, its preprocessing, inputs of a step) of an image tower."""
    size = min(PIXELS, config_of(name)["vision_cfg"]["image_size"])
    spec = student.resolve(name, size, None if bridge else DIM)
    model, preprocess = student.build(spec, False, 0, BATCH)
    pixels = torch.randint(
        256, (BATCH, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return with_bridge(model, spec, preprocess, bridge), spec, preprocess, (pixels, None)


def text_student(name, bridge):
    spec = student.resolve_text(name, None if bridge else DIM)
    model = student.build_text(spec, 0)
    tokens = open_clip.tokenizer_for(spec.config)(SENTENCES)
    return with_bridge(model, spec, None, bridge), spec, None, (None, tokens)


def with_bridge(model, spec, preprocess, bridge):
    return Student(model, preprocess, (), projection_of(model, spec, DIM, 0) if bridge else None)


def learn(ours, inputs):
    """Train a student for two steps on random features of a teacher; all of it has a gradient."""
    draw = torch.Generator().manual_seed(1)
    teacher = Features.from_rows(
        torch.randn(BATCH, DIM, generator=draw), torch.randn(5, DIM, generator=draw), 20.0
    )
    objective, optimizer, losses = Objective(LOSS), adamw(ours, Recipe(lr=1e-4)), []
    before = sums(ours)
    for _ in range(2):
        optimizer.zero_grad()
        (features,) = ours.train().features(ours(*inputs), [teacher])
        losses.append(objective(features, teacher)["total"])
        losses[-1].backward()
        optimizer.step()
    assert all(
        parameter.grad is not None and torch.isfinite(parameter.grad).all()
        for parameter in ours.parameters()
    )
    moved = [old != new for old, new in zip(before, sums(ours), strict=True)]
    assert sum(moved) > 0.9 * len(
        moved
    )  # all but biases in front of a normalisation, which have no gradient
    assert all(torch.isfinite(loss) for loss in losses)


def sums(module):
    return [float(parameter.detach().sum()) for parameter in module.parameters()]


def written(ours, spec, preprocess, kind, teacher, out):
    """Write what a run leaves behind for evaluation; return the encoder that it loads."""
    model, config = ours.finished(spec.config)
    assert config["embed_dim"] == DIM
    folder.save_tensors(model.state_dict(), out / folder.KINDS[kind])
    record = {"kind": kind, "model_cfg": config, "preprocess_cfg": preprocess}
    write_text(
        out / folder.FILE,
        to_json({**record, "teacher": teacher.card.fields(), "teacher_at": None}),
    )
    return load_encoder(str(out), "cpu")


BRIDGES = [pytest.param(False, id="own"), pytest.param(True, id="bridge", marks=pytest.mark.slow)]


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("name", towers("image"))
def test_an_image_tower_learns_and_evaluates(name, bridge, tiny_teacher, tmp_path):
    ours, spec, preprocess, inputs = image_student(name, bridge)
    learn(ours, inputs)
    with torch.no_grad():
        expected = F.normalize(ours.eval()(*inputs)["rows"], dim=-1)
    encoder = written(ours, spec, preprocess, "image-tower", tiny_teacher, tmp_path)
    assert encoder.image_size == inputs[0].shape[1:3]
    pixels = (inputs[0].permute(0, 3, 1, 2) / 255 - ours.mean) / ours.std
    torch.testing.assert_close(
        encoder.encode_image(pixels), expected, rtol=0, atol=1e-4 if bridge else 1e-5
    )
    assert expected.std(0).max() > 1e-5  # rows differ
    assert encoder.encode_text(encoder.tokenize(SENTENCES)[0]).shape == (3, DIM)


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("name", towers("text"))
def test_a_text_tower_learns_and_evaluates(name, bridge, tiny_teacher, tmp_path):
    ours, spec, _, inputs = text_student(name, bridge)
    learn(ours, inputs)
    with torch.no_grad():
        expected = F.normalize(ours.eval()(*inputs)["rows"], dim=-1)
    encoder = written(ours, spec, None, "text-tower", tiny_teacher, tmp_path)
    rows = encoder.encode_text(encoder.tokenize(SENTENCES)[0])
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-4 if bridge else 1e-5)
    assert expected.std(0).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_student_encodes_images_of_its_own_size(name):
    spec = student.resolve(name, None, 48)
    model, preprocess = student.build(spec, False, 0)
    assert preprocess["size"] == spec.image_size == config_of(name)["vision_cfg"]["image_size"]
    with torch.inference_mode():
        rows = model.eval().encode_image(torch.randn(2, 3, spec.image_size, spec.image_size))
    assert rows.shape == (2, 48)
    assert torch.isfinite(rows).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_student_is_an_open_clip_config_with_both_towers(name):
    config = config_of(name)
    assert {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys()
    assert open_clip.config_of(name) == config
    assert not config["vision_cfg"].get("timm_model_pretrained", False)
    assert student.resolve(name).config["embed_dim"] == config["embed_dim"]


def measured(name):
    """Return (weights of the image tower, of the text tower, GFLOP of one image, of one sentence);
    a multiplication with its addition counts two."""
    config = config_of(name)
    towers = ("vision_cfg", open_clip.image_tower), ("text_cfg", open_clip.text_tower)
    found = [
        _measured(json.dumps({"embed_dim": config["embed_dim"], part: config[part]}), build)
        for part, build in towers
    ]
    (image, image_gflop), (text, text_gflop) = found
    return image, text, image_gflop, text_gflop


@functools.cache
def _measured(config, build):
    """Return (weights, GFLOP) of a tower; nothing is computed, since torch's meta device knows
    shapes only.
    """
    table = json.loads(config)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower = build(table).eval()
        if "vision_cfg" in table:
            tower(torch.zeros(1, 3, *2 * [table["vision_cfg"]["image_size"]]))
        else:
            tower(torch.zeros(1, table["text_cfg"]["context_length"], dtype=torch.long))
    return sum(weights.numel() for weights in tower.parameters()), counter.get_total_flops() / 1e9


# name: millions of weights of the image tower and together, GFLOP of an image and of a sentence
PUBLISHED = {
    # CLIP-KD's configs; the factor on cosines counts as a weight
    "ViT-T-16": (5.62, 46.12, 2.51, 3.38),
    "MobileViT-S": (5.27, 45.76, 3.04, 3.38),
    "MobileViT-XXS": (1.11, 41.61, None, 3.38),
    "Swin-T": (27.91, 68.41, 8.98, 3.38),
    "MobileNetV3-S": (2.04, 42.54, None, 3.38),
    "EfficientNet-B0": (4.66, 45.16, 0.77, 3.38),
    "ResNet-18": (11.44, 51.93, 3.63, 3.38),
    # TinyCLIP's; its own figures are multiplications with additions, half of these
    "TinyCLIP-ViT-39M-16-Text-19M": (38.59, 83.10, 2 * 7.991, 2 * 1.490),
    "TinyCLIP-ViT-8M-16-Text-3M": (8.28, 23.45, 2 * 1.787, 2 * 0.191),
    "TinyCLIP-ResNet-30M-Text-29M": (29.58, 83.82, 2 * 4.693, 2 * 2.235),
    "TinyCLIP-ResNet-19M-Text-19M": (18.60, 63.37, 2 * 2.916, 2 * 1.490),
    "TinyCLIP-ViT-61M-32-Text-29M": (61.41, 115.38, 2 * 3.084, 2 * 2.235),
    "TinyCLIP-ViT-40M-32-Text-19M": (39.69, 84.21, 2 * 1.995, 2 * 1.490),
    # DIME-FM's: its text towers are built, and thrown away
    "dime-ViT-B-32": (88.05, 211.70, None, None),
    "dime-Swin-T": (28.11, 151.76, None, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_papers(name):
    image, text, *gflop = measured(name)
    millions, together, *expected = PUBLISHED[name]
    assert image / 1e6 == pytest.approx(millions, abs=0.005)
    assert (image + text + 1) / 1e6 == pytest.approx(together, abs=0.005)
    for found, known in zip(gflop, expected, strict=True):
        assert known is None or found == pytest.approx(known, abs=0.006)


ROWS = re.findall(r"(?m)^\| `([^`]+)` \|(.+)\|$", PAGE.read_text(encoding="utf-8"))


def test_the_page_lists_every_student_once():
    listed = sorted(name for name, _ in ROWS)
    assert listed == sorted(NAMES)


@pytest.mark.parametrize(("name", "cells"), ROWS)
def test_the_page_says_what_is_measured(name, cells):
    assert name in NAMES
    image, text, *gflop = measured(name)
    found = [cell.strip() for cell in cells.split("|")]
    config = config_of(name)
    expected = [
        f"{config['vision_cfg']['image_size']}",
        f"{config['embed_dim']}",
        f"{image / 1e6:.2f}",
        f"{text / 1e6:.2f}",
    ]
    assert found[:6] == [*expected, *(f"{value:.2f}" for value in gflop)]


# where the image tower's last projection is in CLIP-KD's released state dicts as they load today,
# and its shape
KEYS = {
    "ViT-T-16": ("visual.proj", (192, 512)),
    "MobileViT-S": ("visual.head.proj.weight", (512, 640)),
    "MobileViT-XXS": ("visual.head.proj.weight", (512, 320)),
    "Swin-T": ("visual.head.proj.weight", (512, 768)),
    "MobileNetV3-S": (
        "visual.trunk.classifier.weight",
        (512, 1024),
    ),  # released as visual.head.proj.weight, without bias
    "EfficientNet-B0": ("visual.head.proj.weight", (512, 1280)),
    "ResNet-18": ("visual.head.proj.weight", (512, 512)),
}


@functools.cache
def shapes(name):
    """Return the state dict of a student as a whole CLIP, names and shapes only."""
    with torch.device("meta"):
        towers = (
            ImageTower(open_clip.image_tower(config_of(name))),
            open_clip.text_tower(config_of(name)),
        )
    return {
        key: tuple(value.shape) for tower in towers for key, value in tower.state_dict().items()
    }


@pytest.mark.parametrize("name", KEYS)
def test_weights_have_the_names_of_the_released_ones(name):
    key, shape = KEYS[name]
    found = shapes(name)
    assert found[key] == shape
    assert f"{key.removesuffix('weight')}bias" not in found or name == "MobileNetV3-S"
    assert ("visual.head.proj.weight" in found) == (key == "visual.head.proj.weight")
    assert found["text_projection"] == (384, 512) and found["token_embedding.weight"] == (
        49408,
        384,
    )
    assert (
        found["positional_embedding"] == (77, 384)
        and "transformer.resblocks.11.mlp.c_proj.weight" in found
    )


def test_swin_keeps_its_downsampling_at_the_start_of_a_stage_and_no_masks():
    found = shapes("Swin-T")
    stages = {key.split(".")[3] for key in found if ".downsample." in key}
    assert stages == {"1", "2", "3"}  # released: 0, 1, 2
    assert not [key for key in found if "attn_mask" in key or "relative_position_index" in key]
    assert sum("relative_position_bias_table" in key for key in found) == 12


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_student_is_told_its_name(name):
    with pytest.raises(ModelError, match=f"unknown architecture .*: did you mean '{name}'"):
        student.resolve(f"{name}x")


def test_the_help_says_where_students_are_listed():
    (option,) = (option for option in command.params if option.name == "student")
    assert "docs/students.md" in option.help
