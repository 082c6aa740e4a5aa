"""Published checkpoints in their layouts, made from random weights: the features stay the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import dimefm
from dimefm.cli import main
from dimefm.models import open_clip, pruned
from dimefm.models.loading import load_encoder
from dimefm.models.weights import clip_kd
from dimefm.models.weights.importing import FAMILIES, family_of, import_checkpoint
from tests.models.weights.layouts import (
    PRUNED,
    clip_kd_mobilenet,
    clip_kd_small_mobilenet,
    clip_kd_swin,
    declip,
    declip_of_a_named_student,
    declip_resnet,
    dime_swin,
    dime_vit,
    dime_vit_of_the_evaluation,
    open_clip_json,
    open_clip_state,
    openai,
    openai_in_half,
    openai_resnet,
    slip,
    tinyclip,
    tinyclip_automatic,
    tinyclip_automatic_plain,
    tinyclip_resnet,
)

EXACT = {"rtol": 0, "atol": 1e-6}
SENTENCES = ["a dog", "two dogs on a lawn, seen from above"]


def features(encoder, model):
    """Return pairs of (imported, original) unit rows of images and sentences."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    pixels = encoder.preprocess(image)[None]
    tokens, _ = encoder.tokenize(SENTENCES)
    with torch.inference_mode():
        images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
        texts = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
    return (encoder.encode_image(pixels), images), (encoder.encode_text(tokens), texts)


WHOLE = (
    openai,
    openai_resnet,
    openai_in_half,
    pytest.param(open_clip_state, marks=pytest.mark.slow),
    open_clip_json,
    clip_kd_swin,
    pytest.param(clip_kd_mobilenet, marks=pytest.mark.slow),
    clip_kd_small_mobilenet,
    tinyclip,
    tinyclip_resnet,
    tinyclip_automatic,
    tinyclip_automatic_plain,
    declip,
    slip,
    declip_resnet,
    declip_of_a_named_student,
)


def name_of(make):
    return getattr(make, "__name__", None)


@pytest.mark.parametrize("make", WHOLE, ids=name_of)
def test_features_of_a_whole_clip_stay_the_same(make, tmp_path):
    model, state, options = make(tmp_path)
    torch.save(state, tmp_path / "x.pt")
    imported = import_checkpoint(tmp_path / "x.pt", tmp_path / "run", **options)
    assert imported.kind == "clip"
    expected = make.__name__.split("_")[0]
    assert imported.family.replace("-", "").startswith(expected.replace("slip", "declip")[:4])
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    for ours, theirs in features(encoder, model):
        torch.testing.assert_close(ours, theirs, **EXACT)
    scale = float(model.logit_scale.detach().exp())
    assert encoder.card.logit_scale == pytest.approx(scale)
    means = {"declip": 0.485}
    mean = means.get(imported.family, 0.48145466)
    assert encoder.card.preprocess["mean"][0] == pytest.approx(mean)


@pytest.mark.parametrize("make", [dime_vit, dime_vit_of_the_evaluation, dime_swin], ids=name_of)
def test_features_of_an_image_tower_stay_the_same(make, tmp_path, teacher):
    tower, state = make(tmp_path)
    torch.save(state, tmp_path / "checkpoint.pth.tar")
    name = None
    if make is dime_swin:
        name = str(tmp_path / "swin.json")
        config = {**open_clip.config_of("dime-Swin-T"), "embed_dim": 32}
        Path(name).write_text(json.dumps(config))
    imported = import_checkpoint(
        tmp_path / "checkpoint.pth.tar", tmp_path / "run", student=name, teacher=teacher
    )
    assert (imported.family, imported.kind) == ("dime-fm", "image-tower")
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    image = Image.new("RGB", (50, 40), (200, 30, 90))
    pixels = encoder.preprocess(image)[None]
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(tower.encode_image(pixels), dim=-1)
    torch.testing.assert_close(encoder.encode_image(pixels), expected, **EXACT)
    whole = load_encoder(str(teacher), "cpu")
    tokens, _ = encoder.tokenize(SENTENCES)
    assert torch.equal(encoder.encode_text(tokens), whole.encode_text(tokens))


def test_the_command_and_the_run_work_together(tmp_path):
    torch.save(tinyclip_automatic(tmp_path)[1], tmp_path / "x.pt")
    out = tmp_path / "run"
    result = CliRunner().invoke(main, ["import", str(tmp_path / "x.pt"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "tensors: all fit" in result.output and "(tinyclip)" in result.output
    listed = CliRunner().invoke(main, ["runs", "list", str(tmp_path)], terminal_width=80)
    assert listed.exit_code == 0 and "imported" in listed.output
    model = dimefm.load(out, device="cpu")
    assert model.encode_text("a dog").shape == (48,)
    record = json.loads((out / "run.json").read_text())
    assert record["imported"]["file"] == "x.pt"
    assert record["model_cfg"]["vision_cfg"]["pruned"] == {
        **PRUNED["vision_cfg"]["pruned"],
        "head_width": 64,
    }


@pytest.mark.parametrize("name", ["MobileViT-S", "EfficientNet-B0", "ResNet-18", "MobileNetV3-S"])
def test_students_that_match_key_for_key_are_not_renamed(name):
    tensors = open_clip.image_tower(open_clip.config_of(name)).state_dict()
    tensors = {f"visual.{key}": tensor for key, tensor in tensors.items()}
    assert clip_kd.remap(dict(tensors)).keys() == tensors.keys()


def test_every_family_is_known_by_its_name():
    assert [family_of(name).name for name in FAMILIES] == list(FAMILIES)
    from dimefm.cli import import_

    assert set(import_.FAMILIES) == {"auto", *FAMILIES}
    assert pruned.HEAD_WIDTH == 64
