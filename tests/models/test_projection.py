"""A bridge folded into a tower's last projection gives the rows that it gave beside it, for every
family of towers.
"""

import json

import pytest
import torch
from torch import nn

from dimefm.errors import ModelError, RecipeError
from dimefm.losses import Features
from dimefm.models import open_clip, student
from dimefm.models import projection as bridges
from dimefm.models.encoder import weights_sha256
from dimefm.models.open_clip import default_preprocess
from dimefm.models.towers import ImageTower, TextTower
from dimefm.recipe import read, refuse_idle
from dimefm.train.student import Student, heads, projection_of

OWN, TEACHER, CONTEXT = 12, 20, 8
VIT = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 32}
TEXT = {"context_length": CONTEXT, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}


def timm(name="test_resnet", pool="", proj="linear", **more):
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 32, **more}


IMAGES = {
    "ViT, class token": VIT,
    "ViT, mean of patches": {**VIT, "pool_type": "avg"},
    "ViT, LayerNorm behind the pool": {**VIT, "final_ln_after_pool": True},
    "ModifiedResNet": RESNET,
    "timm, linear": timm(),
    "timm, linear with bias": timm(timm_proj_bias=True),
    "timm, its classifier": timm("mobilenetv3_small_050", pool="avg", proj=""),
    "timm, its classifier in a head": timm("test_convnext", pool="avg", proj=""),
    "timm ViT, its classifier": timm("test_vit", pool="token", proj="", image_size=160),
    "timm, rotary attention pool": timm("resnet10t", pool="rot_attn", proj=""),
}
TEXTS = {
    "matrix": TEXT,
    "linear with bias": {**TEXT, "proj_bias": True},
    "class token": {**TEXT, "embed_cls": True},
    "last token, no mask": {**TEXT, "no_causal_mask": True, "pool_type": "last"},
}


def image_tower(tmp_path, vision, dim=None):
    """Return (tower with weights that are all random, spec) of a table ``vision_cfg``."""
    path = tmp_path / "student.json"
    path.write_text(json.dumps({"embed_dim": OWN, "vision_cfg": vision}))
    spec = student.resolve(str(path), None, dim)
    return stirred(student.build(spec, False, 0)[0]), spec


def text_tower(tmp_path, text, dim=None):
    path = tmp_path / "student.json"
    path.write_text(json.dumps({"embed_dim": OWN, "vision_cfg": VIT, "text_cfg": text}))
    spec = student.resolve_text(str(path), dim)
    return stirred(student.build_text(spec, 0)), spec


def stirred(tower):
    """Return the tower in float64 with noise on all weights: a fresh one has biases of 0, of which
    a test learns nothing.
    """
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return tower.double()


def same_rows(tower, spec, build, inputs):
    """Check that a folded bridge gives the same rows in float64, that the tower is as it was, and
    that an ordinary tower of the new dimension takes the weights."""
    bridge = projection_of(tower.float(), spec, TEACHER, 0).double()
    before = weights_sha256(tower.double())
    encode = "encode_image" if inputs.is_floating_point() else "encode_text"
    with torch.no_grad():
        expected = bridge(getattr(tower.eval(), encode)(inputs))
        folded = bridges.folded(tower, bridge)
        found = getattr(folded.eval(), encode)(inputs)
        ordinary = build(spec)
        ordinary.load_state_dict(folded.state_dict())
        again = getattr(ordinary.double().eval(), encode)(inputs)
    assert expected.shape == (len(inputs), TEACHER) and expected.abs().min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(again, found)
    assert weights_sha256(tower) == before
    assert all(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("vision", IMAGES.values(), ids=IMAGES)
def test_an_image_tower_takes_it_in(tmp_path, vision):
    tower, spec = image_tower(tmp_path, vision)
    pixels = torch.randn(
        3, 3, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(2)
    ).double()
    same_rows(tower, spec, lambda spec: image_tower(tmp_path, vision, TEACHER)[0], pixels)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_tower_takes_it_in(tmp_path, text):
    tower, spec = text_tower(tmp_path, text)
    tokens = torch.randint(50, (3, CONTEXT), generator=torch.Generator().manual_seed(2))
    same_rows(tower, spec, lambda spec: text_tower(tmp_path, text, TEACHER)[0], tokens)


NOT = {
    "no projection": (timm(pool="avg", proj="none"), 96, "its last layer is no linear projection"),
    "two projections": (
        timm("deit_tiny_distilled_patch16_224", pool="token", proj="", image_size=224),
        OWN,
        "its last layer is no linear projection",
    ),
    "two layers": (timm(proj="mlp"), OWN, "not only its last projection depends on its dimension"),
    "attentional pool": (
        {**VIT, "attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": 2},
        OWN,
        "not only its last projection depends on its dimension",
    ),
}


@pytest.mark.parametrize(("vision", "dim", "words"), NOT.values(), ids=NOT)
def test_a_tower_without_a_last_projection_is_refused(tmp_path, vision, dim, words):
    tower, spec = image_tower(tmp_path, vision, dim)
    with pytest.raises(
        ModelError,
        match=f"student.json: cannot take in a projection: .*{words}. Fix: remove --projection",
    ) as caught:
        projection_of(tower.float(), spec, TEACHER, 0)
    assert "\n" not in str(caught.value)


def test_a_tower_that_goes_on_behind_its_last_projection_is_refused(tmp_path):
    tower, spec = image_tower(tmp_path, timm())
    tower.visual.head.append(nn.ReLU())
    with pytest.raises(ModelError, match="its last projection is not the last thing that it does"):
        projection_of(tower.float(), spec, TEACHER, 0)


def test_a_text_tower_without_a_projection_is_refused(tmp_path):
    tower, spec = text_tower(tmp_path, {**TEXT, "proj_type": "none"}, TEXT["width"])
    with pytest.raises(
        ModelError,
        match="student.json: cannot take in a projection: its last layer is no linear projection",
    ):
        projection_of(tower.float(), spec, TEACHER, 0)


@pytest.mark.parametrize("name", ["timm/test_resnet", "config"])
def test_a_student_without_a_dimension_of_its_own_cannot_keep_it(tmp_path, name):
    if name == "config":
        name = str(tmp_path / "config.json")
        (tmp_path / "config.json").write_text(json.dumps({"vision_cfg": VIT}))
    with pytest.raises(ModelError, match="has no dimension of its own"):
        student.resolve(name, 32)


def test_it_is_a_function_of_the_seed_and_leaves_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, again, other = (bridges.draw(OWN, TEACHER, seed).weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, again) and not torch.equal(one, other)


def bridged(tmp_path, kind):
    """Return (student with a bridge and a head, spec, pixels, tokens) of an image or a text
    tower.
    """
    if kind == "image":
        tower, spec = image_tower(tmp_path, VIT)
        preprocess, pixels, tokens = (
            default_preprocess(16),
            torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8),
            None,
        )
    else:
        tower, spec = text_tower(tmp_path, TEXT)
        preprocess, pixels, tokens = None, None, torch.randint(50, (4, CONTEXT))
    tower = tower.float()
    bridge = projection_of(tower, spec, TEACHER, 0)
    return Student(tower, preprocess, heads([TEACHER, 6], 0), bridge), spec, pixels, tokens


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_student_learns_all_of_it_and_is_finished_as_an_ordinary_tower(tmp_path, kind):
    ours, spec, pixels, tokens = bridged(tmp_path, kind)
    unit = (
        nn.functional.normalize(torch.randn(4, TEACHER)),
        nn.functional.normalize(torch.randn(4, 6)),
    )
    teachers = [Features.from_rows(rows, rows, 10.0) for rows in unit]
    outputs = ours(pixels, tokens)
    assert [tuple(rows.shape) for rows in outputs.values()] == [(4, TEACHER), (4, 6)]
    found = ours.features(outputs, teachers)
    sum((f.image - t.image).square().sum() for f, t in zip(found, teachers, strict=True)).backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in ours.parameters()
    )
    torch.optim.SGD(ours.parameters(), lr=0.1).step()

    model, config = ours.eval().finished(spec.config)
    assert config == {**spec.config, "embed_dim": TEACHER} and spec.config["embed_dim"] == OWN
    image = kind == "image"
    rebuilt = (
        ImageTower(open_clip.image_tower(config))
        if image
        else TextTower(open_clip.text_tower(config))
    )
    rebuilt.load_state_dict(model.state_dict())
    plain = Student(rebuilt.eval(), default_preprocess(16) if image else None)
    with torch.no_grad():
        expected = ours(pixels, tokens)["rows"]
        torch.testing.assert_close(plain(pixels, tokens)["rows"], expected, rtol=1e-5, atol=1e-5)
    same, config = plain.finished(config)
    assert same is rebuilt and config["embed_dim"] == TEACHER


def test_the_bridge_is_saved_with_the_student(tmp_path):
    ours, *_ = bridged(tmp_path, "image")
    assert "projection.weight" in ours.state_dict()
    assert ours.state_dict()["projection.weight"].shape == (TEACHER, OWN)


def test_two_towers_that_learn_without_a_teacher_have_no_bridge():
    with pytest.raises(
        RecipeError, match="is for one tower that is led into the space of a teacher"
    ):
        refuse_idle(read(None, projection="linear", text="student"))
    with pytest.raises(RecipeError, match="expected one of 'none', 'linear'"):
        read(None, projection="mlp")
