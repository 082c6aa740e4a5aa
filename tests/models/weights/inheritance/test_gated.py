"""Models that compute through gates, and what is left of them when they are cut."""

import copy

import pytest
import torch

from dimefm.errors import ModelError
from dimefm.models import open_clip
from dimefm.models.student import new_tower, resolve
from dimefm.models.weights.inheritance.cut import cut
from dimefm.models.weights.inheritance.gated import Gates

VISION = {"image_size": 16, "patch_size": 8, "width": 24, "layers": 3, "head_width": 8}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "layers": 2, "heads": 2}
CLIP = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
CONFIGS = {
    "clip": CLIP,
    "quick gelu": {**CLIP, "quick_gelu": True},
    "custom text": {**CLIP, "custom_text": True},
    "mean of patches, no first norm": {
        **CLIP,
        "vision_cfg": {**VISION, "pool_type": "avg", "no_ln_pre": True},
    },
    "siglip's text": {
        **CLIP,
        "custom_text": True,
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
}


def built(config, kind):
    """Return a model with random weights, also of its biases, and the names of its towers."""
    torch.manual_seed(0)
    if kind == "both":
        model = open_clip.from_config(config)
        names = ["image", "text"]
    else:
        model = new_tower(config, text=kind == "text")
        names = [kind]
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval(), names


def randomize(gates, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for alpha in gates.towers.parameters():
        alpha.data.copy_(2 * torch.randn(alpha.shape, generator=generator))


def embeddings(model, run, names):
    """Return the embeddings of a few pixels and tokens, those of the towers that there are."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, 3, 16, 16, generator=generator)
    tokens = torch.randint(1, 400, (3, 8), generator=generator)
    tokens[:, 4] = 49407
    rows = []
    with torch.no_grad():
        if "image" in names:
            rows.append(run(model.encode_image, pixels))
        if "text" in names:
            rows.append(run(model.encode_text, tokens))
    return rows


def gated(model, gates):
    return lambda encode, inputs: gates.run(model, encode, inputs)


def plainly(encode, inputs):
    return encode(inputs)


@pytest.mark.parametrize("kind", ["both", "image", "text"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_model_computes_what_the_gated_one_does(name, kind):
    config = CONFIGS[name]
    model, names = built(config, kind)
    gates = Gates(model, names).eval()
    randomize(gates)
    for tower in gates.towers.values():  # a layer without heads, and one without hidden units
        tower.alpha["heads_0"].data.fill_(-9.0)
        tower.alpha["mlp_1"].data.fill_(-9.0)
    small, small_config = cut(model, config, gates)
    for tower in names:
        key = {"image": "vision_cfg", "text": "text_cfg"}[tower]
        layers = small_config[key]["pruned"]["layers"]
        assert layers[0]["heads"] == 0 and layers[1]["mlp"] == 0
        assert 0 < small_config[key]["pruned"]["width"] < config[key]["width"]
    before = embeddings(model, gated(model, gates), names)
    after = embeddings(small, plainly, names)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    lengths = sum(weight.numel() for weight in small.parameters())
    assert lengths < sum(weight.numel() for weight in model.parameters())


def test_a_cut_model_can_be_gated_and_cut_again():
    model, names = built(CLIP, "both")
    config = CLIP
    for seed in (1, 2):
        gates = Gates(model, names).eval()
        randomize(gates, seed)
        gates.towers["image"].alpha["heads_0" if seed == 1 else "heads_2"].data.fill_(-9.0)
        before = embeddings(model, gated(model, gates), names)
        widths = [tower.structure.width for tower in gates.towers.values()]
        model, config = cut(model, config, gates)
        model.eval()
        for one, other in zip(before, embeddings(model, plainly, names), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        for key, width in zip(("vision_cfg", "text_cfg"), widths, strict=True):
            assert config[key]["pruned"]["width"] < width
    heads = [layer["heads"] for layer in config["vision_cfg"]["pruned"]["layers"]]
    assert heads[0] == heads[2] == 0


def test_open_gates_leave_a_model_as_it_is():
    model, names = built(CLIP, "both")
    plain = embeddings(copy.deepcopy(model), plainly, names)
    gates = Gates(model, names).train()
    gates.draw(0)
    for alpha in gates.towers.parameters():
        alpha.data.fill_(60.0)
    for one, other in zip(plain, embeddings(model, gated(model, gates), names), strict=True):
        torch.testing.assert_close(one, other)
    assert embeddings(model, plainly, names)[0].equal(embeddings(model, plainly, names)[0])


def test_gates_are_drawn_from_the_seed_alone():
    model, names = built(CLIP, "both")
    gates = Gates(model, names).train()
    randomize(gates)
    rows = []
    for seed in (3, 4, 3):
        torch.manual_seed(seed + 10)
        gates.draw(seed)
        rows.append(embeddings(model, gated(model, gates), names)[0])
        assert embeddings(model, gated(model, gates), names)[0].equal(rows[-1])
    assert rows[0].equal(rows[2]) and not rows[0].equal(rows[1])


def test_nothing_open_still_leaves_a_channel():
    model, names = built(CLIP, "image")
    gates = Gates(model, names).eval()
    for alpha in gates.towers.parameters():
        alpha.data.fill_(-9.0)
    small, config = cut(model, CLIP, gates)
    assert config["vision_cfg"]["pruned"]["width"] == 1
    assert embeddings(small, plainly, names)[0].isfinite().all()


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"timm_model_name": "resnet18", "image_size": 32}, "timm's ResNet"),
        ({"timm_model_name": "vit_tiny_patch16_224", "image_size": 32}, "timm's VisionTransformer"),
        ({"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, "ModifiedResNet"),
        ({**VISION, "ls_init_value": 0.1}, "layer 0 of the image tower, ResidualAttentionBlock"),
        ({**VISION, "attentional_pool": True, "attn_pooler_heads": 2}, "'attn_pool."),
    ],
)
def test_a_tower_that_gates_do_not_fit_is_named(vision, words):
    model = new_tower({"embed_dim": 12, "vision_cfg": vision}, text=False)
    with pytest.raises(ModelError, match="cannot be pruned") as error:
        Gates(model, ["image"])
    assert words in str(error.value) and "Fix: " in str(error.value)


def test_every_small_student_of_transformers_can_be_gated():
    spec = resolve("ViT-T-16", 32)
    model = new_tower(spec.config, text=False).eval()
    gates = Gates(model, ["image"])
    assert gates.towers["image"].structure.layers == len(model.visual.transformer.resblocks)
