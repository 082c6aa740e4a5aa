"""What is exported to open_clip is loaded by open_clip itself, and computes the same."""

import json

import numpy as np
import open_clip
import pytest
import torch

import dimefm
from dimefm.errors import ModelError
from dimefm.models.model import load
from tests.export.conftest import TEXT, VIT, picture, write_folder

PROMPTS = ["a red square", "two dogs on a lawn, seen from above", "caf\u00e9 &amp; bar"]
RESNET = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": TEXT,
}
SQUASHED = {
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
BIASED = {**VIT, "custom_text": True, "init_logit_bias": -10}


def same_in_open_clip(spec, folder, **options):
    """Check that open_clip computes from ``folder`` what dimefm computes from ``spec``."""
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    ours = load(spec, "cpu", **options)
    with torch.no_grad():
        images = model.eval().encode_image(transform(picture())[None], normalize=True)
        texts = model.encode_text(tokenizer(PROMPTS), normalize=True)
    assert np.allclose(images.numpy()[0], ours.encode_image(picture()), atol=1e-6)
    assert np.allclose(texts.numpy(), ours.encode_text(PROMPTS), atol=1e-6)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(ours.logit_scale, rel=1e-6)
    bias = model.logit_bias
    expected = ours.encoder.card.logit_bias
    assert (None if bias is None else float(bias.detach())) == pytest.approx(expected)
    return model


@pytest.mark.parametrize(
    "config, preprocess",
    [
        (VIT, SQUASHED),
        ({**VIT, "quick_gelu": True}, {}),
        (RESNET, {}),
        (BIASED, {}),
        ({**VIT, "text_cfg": {**TEXT, "proj_bias": True, "pool_type": "last"}}, {}),
    ],
    ids=["vit", "quick", "resnet", "bias", "pooling"],
)
def test_a_whole_clip(config, preprocess, tmp_path):
    spec = write_folder(tmp_path / "model", config, preprocess)
    exported = dimefm.export(spec, "open_clip", tmp_path / "out")
    assert exported.agreements[0].image_least > 0.99999
    same_in_open_clip(spec, tmp_path / "out")


@pytest.mark.parametrize(
    "config, student",
    [
        (VIT, "ResNet-mini-32"),
        (VIT, "RN-mini-32"),
        ({**VIT, "quick_gelu": True}, "ResNet-mini-32"),
        (BIASED, "ResNet-mini-32"),
    ],
    ids=["timm", "resnet", "quick text", "bias"],
)
def test_a_distilled_image_tower_takes_its_text_tower_along(config, student, distilled, tmp_path):
    teacher = write_folder(tmp_path / "model", config)
    run = distilled(teacher, student=student)
    dimefm.export(run, "open_clip", tmp_path / "out")
    model = same_in_open_clip(run, tmp_path / "out")
    assert model.visual.image_size in (32, (32, 32))
    (tmp_path / "model").rename(tmp_path / "elsewhere")  # the export needs nothing else
    assert load(str(tmp_path / "out"), "cpu").encode_text("a cat").shape == (48,)


def test_a_distilled_text_tower_takes_its_image_tower_along(distilled, tmp_path):
    teacher = write_folder(tmp_path / "model", VIT)
    run = distilled(teacher, text="student:dime-text-256")
    dimefm.export(run, "open_clip", tmp_path / "out")
    same_in_open_clip(run, tmp_path / "out")


def test_what_open_clip_cannot_express_is_refused_and_leaves_nothing(distilled, tmp_path):
    teacher = write_folder(tmp_path / "model", {**VIT, "quick_gelu": True})
    config = tmp_path / "student.json"
    config.write_text(json.dumps({"embed_dim": 48, "vision_cfg": VIT["vision_cfg"]}))
    run = distilled(teacher, student=str(config))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match="QuickGELU.*one activation for both.*Fix: use --to hf"):
        dimefm.export(run, "open_clip", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_timm_tower_of_another_size_is_refused(distilled, tmp_path):
    run = distilled(write_folder(tmp_path / "model", VIT), student="timm/test_vit", image_size=64)
    with pytest.raises(ModelError, match="images of 160 pixels alone. Fix: use --to hf"):
        dimefm.export(run, "open_clip", tmp_path / "out")


def test_a_student_may_have_the_activation_of_its_teacher(distilled, tmp_path):
    teacher = write_folder(tmp_path / "model", {**VIT, "quick_gelu": True})
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VIT["vision_cfg"]}
    (tmp_path / "student.json").write_text(json.dumps(config))
    run = distilled(teacher, student=str(tmp_path / "student.json"))
    dimefm.export(run, "open_clip", tmp_path / "out")
    same_in_open_clip(run, tmp_path / "out")
