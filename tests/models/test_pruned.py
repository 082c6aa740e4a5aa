"""Towers whose layers differ: described from their weights, built, loaded, bounded."""

import copy
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dimefm.errors import ModelError
from dimefm.models import config_check, open_clip, pruned, student
from dimefm.models.loading import load_encoder

EXACT = {"rtol": 0, "atol": 1e-6}
VISION = {"image_size": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49_408}
LAYERS = [{"heads": 3, "mlp": 20}, {"heads": 0, "mlp": 7}, {"heads": 1, "mlp": 0}]
CUT = {"width": 19, "head_width": 8, "layers": LAYERS}
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {**VISION, "pruned": CUT},
    "text_cfg": {**TEXT, "pruned": CUT},
}


def noisy(model, seed=0):
    """Return a model whose weights are all drawn from ``seed``, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.05)
    return model.eval()


def tokens(count=3):
    rows = torch.zeros(count, TEXT["context_length"], dtype=torch.long)
    rows[:, :4] = torch.tensor([49_406, 320, 1929, 49_407])
    rows[0, 1] = 7
    return rows


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_equal_layers_compute_what_open_clip_computes(quick_gelu, checkpointing):
    ordinary = {
        "embed_dim": 12,
        "quick_gelu": quick_gelu,
        "vision_cfg": {**VISION, "width": 24, "head_width": 8, "layers": 2},
        "text_cfg": {**TEXT, "width": 16, "heads": 2, "layers": 3},
    }
    whole = noisy(open_clip.from_config(ordinary))
    config = copy.deepcopy(ordinary)
    weights = whole.state_dict()
    config["vision_cfg"] = {**VISION, "pruned": pruned.describe(weights, "visual.", 8)}
    config["text_cfg"] = {**TEXT, "pruned": pruned.describe(weights, "", 8)}
    model = open_clip.from_config(config)
    model.load_state_dict(weights)
    model.set_grad_checkpointing(checkpointing)
    model.eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.encode_image(pixels), whole.encode_image(pixels), **EXACT)
    torch.testing.assert_close(model.encode_text(tokens()), whole.encode_text(tokens()), **EXACT)


def test_a_description_of_its_weights_builds_the_same_model():
    model = noisy(open_clip.from_config(CONFIG))
    weights = model.state_dict()
    assert pruned.describe(weights, "visual.", 8) == CUT
    assert pruned.describe(weights, "", 8) == CUT
    assert "visual.transformer.resblocks.1.ln_1.weight" not in weights
    assert "visual.transformer.resblocks.1.attn.out_proj.bias" in weights
    tower = open_clip.image_tower(CONFIG)
    names = {name.removeprefix("visual.") for name in weights if name.startswith("visual.")}
    assert tower.state_dict().keys() == names
    text = open_clip.text_tower(CONFIG)
    assert text.state_dict().keys() < weights.keys()


def test_a_folder_with_such_a_model_loads_as_an_encoder(tmp_path):
    model = noisy(open_clip.from_config(CONFIG))
    settings = {"model_cfg": CONFIG, "preprocess_cfg": {"size": 16}}
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(settings))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    encoder = load_encoder(str(tmp_path), "cpu")
    image = Image.new("RGB", (20, 30), (200, 30, 90))
    pixels = encoder.preprocess(image)[None]
    expected = model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(encoder.encode_image(pixels), expected, **EXACT)
    sentences, lengths = encoder.tokenize(["a dog", "two dogs on a lawn"])
    assert encoder.lengths_read(sentences).tolist() == lengths  # cut tokens are trusted
    expected = model.encode_text(sentences, normalize=True)
    torch.testing.assert_close(encoder.encode_text(sentences), expected, **EXACT)


def test_such_a_student_is_built_and_learns(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(CONFIG))
    spec = student.resolve(str(path), dim=10)
    tower, _ = student.build(spec, both_towers=False, seed=0)
    tower.encode_image(torch.ones(2, 3, 16, 16)).sum().backward()
    assert all(weights.grad is not None for weights in tower.parameters())


@pytest.mark.parametrize(
    ("tower", "keys", "message"),
    [
        ("vision_cfg", {"width": 19}, "a table without 'width', since it has 'pruned'"),
        ("vision_cfg", {"layers": [1, 1, 1, 1]}, "a table without 'layers'"),
        ("vision_cfg", {"timm_model_name": "resnet18"}, "a table without 'timm_model_name'"),
        ("text_cfg", {"heads": 2}, "a table without 'heads'"),
        ("text_cfg", {"qk_norm": True}, "a table without 'qk_norm'"),
        ("text_cfg", {"pruned": {**CUT, "layers": []}}, "'model_cfg.text_cfg.pruned.layers'"),
        ("text_cfg", {"pruned": {**CUT, "width": 0}}, "'model_cfg.text_cfg.pruned.width' is 0"),
        ("vision_cfg", {"pruned": {**CUT, "code": "x"}}, "'model_cfg.vision_cfg.pruned.code'"),
        (
            "vision_cfg",
            {"pruned": {**CUT, "layers": [{"heads": -1, "mlp": 2}]}},
            "vision_cfg.pruned.layers.0.heads' is -1",
        ),
        (
            "vision_cfg",
            {"pruned": {"width": 16_384, "layers": [{"heads": 256, "mlp": 131_072}] * 200}},
            "describes a model of",
        ),
    ],
)
def test_a_hostile_description_is_refused(tower, keys, message):
    config = {**CONFIG, tower: {**CONFIG[tower], **keys}}
    with pytest.raises(ModelError) as error:
        config_check.model_config(config, "here")
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {}, "expected 0, 1, 2"),
        (
            lambda weights: {k: v for k, v in weights.items() if "resblocks.1." not in k},
            r"layers \[0, 2\], expected 0, 1, 2",
        ),
        (
            lambda weights: {
                **weights,
                "visual.transformer.resblocks.0.attn.out_proj.weight": torch.ones(19, 23),
            },
            "23 columns, expected a multiple of the head width 8",
        ),
        (
            lambda weights: {
                **weights,
                "visual.transformer.resblocks.2.attn.out_proj.weight": torch.ones(19),
            },
            "expected at least 2 axes",
        ),
    ],
)
def test_weights_that_no_description_fits_are_refused(change, message):
    weights = change(open_clip.from_config(CONFIG).state_dict())
    with pytest.raises(ModelError, match=message):
        pruned.describe(weights, "visual.", 8)
