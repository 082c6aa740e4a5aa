"""What is exported to open_clip is loaded by open_clip itself, and computes the same."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import dimefm
from dimefm.models.model import load

PROMPTS = ["a red square", "two dogs on a lawn, seen from above"]


def picture(seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("spec", ["ResNet-mini-64/random:0", "ResNet-mini-32/random:1"])
def test_open_clip_computes_the_same(spec, tmp_path):
    exported = dimefm.export(spec, "open_clip", tmp_path / "out")
    assert exported.agreements[0].image_least > 0.99999
    name = f"local-dir:{tmp_path / 'out'}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    ours = load(spec, "cpu")
    with torch.no_grad():
        images = model.eval().encode_image(transform(picture())[None], normalize=True)
        texts = model.encode_text(tokenizer(PROMPTS), normalize=True)
    assert np.allclose(images.numpy()[0], ours.encode_image(picture()), atol=1e-6)
    assert np.allclose(texts.numpy(), ours.encode_text(PROMPTS), atol=1e-6)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(ours.logit_scale, rel=1e-6)
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert set(record["files"]) == {p.name for p in (tmp_path / "out").iterdir()} - {"export.json"}
