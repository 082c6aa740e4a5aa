"""What every student's towers give beside their rows: parametrised over what is found on disk and
open_clip's families.
"""

import pytest
import torch
from torch import nn

from dimefm.errors import ModelError
from dimefm.models import intermediate, open_clip, student
from dimefm.models.towers import ImageTower
from tests.contracts.test_students import PIXELS, config_of, towers
from tests.models.test_trimmed_text import families

DIM, BATCH = 24, 3
LIKEWISE = (
    "Swin-T",
    "EfficientNet-B0",
    "MobileViT-S",
    "ResNet-18",
)  # the default tests have a quicker one of the family


def students(kind):
    """Return the first name that has each tower of ``kind``, the slower ones marked slow."""
    marks = [pytest.mark.slow]
    return [
        pytest.param(*p.values, marks=marks if p.values[0] in LIKEWISE else p.marks)
        for p in towers(kind)
    ]


def tower_of(name, seed=0):
    """Return (image tower of a student at a small size, pixels of a step)."""
    size = min(PIXELS, config_of(name)["vision_cfg"]["image_size"])
    model, _ = student.build(student.resolve(name, size, DIM), False, seed)
    draw = torch.Generator().manual_seed(1)
    return model, torch.randn(BATCH, 3, size, size, generator=draw).contiguous(
        memory_format=torch.channels_last
    )


def vit(**vision):
    """Return a tiny tower of open_clip's own ViT."""
    config = {
        "image_size": 32,
        "patch_size": 8,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        **vision,
    }
    return ImageTower(open_clip.image_tower({"embed_dim": DIM, "vision_cfg": config}))


def timm(name, **vision):
    config = {
        "timm_model_name": name,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 64,
        **vision,
    }
    return ImageTower(open_clip.image_tower({"embed_dim": DIM, "vision_cfg": config}))


def check_rows(model, pixels, autocast):
    """Rows are the tower's own to the last bit, in both modes, and all that is given has a
    gradient.
    """
    for training in (False, True):
        model.train(training)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.manual_seed(0)
            expected = model.encode_image(pixels)
            torch.manual_seed(0)
            found = intermediate.image(model, pixels)
        assert torch.equal(found.rows, expected)
        assert (
            found.hidden.ndim == 2 and found.patches.ndim == 3 and len(found.patches) == len(pixels)
        )
    sum(part.float().square().sum() for part in found).backward()
    assert all(weights.grad is not None for weights in model.parameters() if weights.requires_grad)
    return found


@pytest.mark.parametrize("name", students("image"))
def test_an_image_tower_gives_its_own_rows_and_more(name):
    model, pixels = tower_of(name)
    found = check_rows(model, pixels, autocast=False)
    assert found.rows.shape == (BATCH, DIM)
    assert not torch.equal(found.patches[0], found.patches[1])
    widths = intermediate.feature_dims(model)
    assert widths == (found.hidden.shape[1], found.patches.shape[2], None, None)
    assert model.training


@pytest.mark.parametrize("name", ["RN-mini-32", "ResNet-mini-32"])
def test_rows_under_autocast(name):
    check_rows(*tower_of(name), autocast=True)


VITS = {
    "plain": {},
    "dropout": {"patch_dropout": 0.5},
    "average": {"pool_type": "avg", "final_ln_after_pool": True},
    "scaled": {"ls_init_value": 0.1, "no_ln_pre": True},
    "attention": {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
}


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_vit_gives_patches_before_its_last_norm_and_the_feature_before_its_projection(
    kind, autocast
):
    model, pixels = vit(**VITS[kind]), torch.randn(BATCH, 3, 32, 32)
    found = check_rows(model, pixels, autocast)
    assert found.patches.shape == (BATCH, 8 if kind == "dropout" else 16, 32)
    whole = intermediate.image(model.eval(), pixels)
    (last,) = model.visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")[
        "image_intermediates"
    ]
    assert torch.equal(whole.patches, last)
    assert torch.equal(whole.hidden @ model.visual.proj, whole.rows)


def test_patches_of_a_modified_resnet_are_its_last_map_and_hidden_is_what_its_projection_takes():
    model, pixels = tower_of("TinyCLIP-ResNet-19M-Text-19M")
    kept = []
    model.visual.layer4.register_forward_hook(lambda *args: kept.append(args[2]))
    found = intermediate.image(model.eval(), pixels)
    assert torch.equal(found.patches.transpose(1, 2).reshape(kept[0].shape), kept[0])
    torch.testing.assert_close(
        model.visual.attnpool.c_proj(found.hidden), found.rows, rtol=1e-5, atol=1e-6
    )


def test_patches_of_a_swin_are_in_the_order_of_its_map():
    model, pixels = tower_of("Swin-T")
    found = intermediate.image(model.eval(), pixels)
    torch.testing.assert_close(
        model.visual.head(found.patches.mean(1)), found.rows, rtol=1e-4, atol=1e-5
    )


def test_a_timm_vit_gives_no_class_token():
    model = timm("test_vit", timm_pool="token", image_size=160)
    found = check_rows(model, torch.randn(2, 3, 160, 160), autocast=False)
    assert found.patches.shape[1] == 100
    assert intermediate.feature_dims(model)[:2] == (64, 64)


def test_a_tower_without_a_projection_of_its_own_gives_its_rows_as_hidden():
    model = timm("test_convnext2", timm_pool="rot_attn", timm_proj="")
    found = check_rows(model, torch.randn(2, 3, 64, 64), autocast=False)
    assert found.hidden is found.rows


def tokens_of(model, length):
    """Return tokens [4, L] with an end of text at different places and padding behind it."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 298, (4, length), generator=draw)
    for row, end in enumerate((3, 5, length - 2, length - 1)):
        tokens[row, end], tokens[row, end + 1 :] = 299, 0
    return tokens


@pytest.mark.parametrize("name", families())
def test_every_family_of_text_towers_gives_its_own_rows_or_is_refused(name):
    config = families()[name]
    model = open_clip.from_config(config)
    if "multimodal_cfg" in config:
        with pytest.raises(ModelError, match="does not give states of words. Fix: choose a model"):
            intermediate.text(model, torch.zeros(1, 77, dtype=torch.long))
        return
    tokens = tokens_of(model, getattr(model, "context_length", 77))
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = intermediate.text(model, tokens)
            assert torch.equal(found.rows, model.encode_text(tokens))
    assert found.states.shape == (*tokens.shape, 64)
    found.states.float().sum().backward(retain_graph=True)
    found.rows.float().sum().backward()
    assert intermediate.feature_dims(model)[2:] == (64, 300)


@pytest.mark.parametrize("name", students("text"))
def test_a_text_tower_gives_its_own_rows_and_the_states_of_all_places(name):
    spec = student.resolve_text(name, DIM)
    model = student.build_text(spec, 0)
    tokens = open_clip.tokenizer_for(spec.config)(["a red square", "two dogs on a lawn"])
    with torch.no_grad():
        found = intermediate.text(model, tokens)
        assert torch.equal(found.rows, model.encode_text(tokens))
        cut = intermediate.text(model, tokens[:, :8])
    torch.testing.assert_close(cut.rows, found.rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut.states, found.states[:, :8], rtol=1e-5, atol=1e-5)
    width = config_of(name)["text_cfg"]["width"]
    assert intermediate.feature_dims(model) == (None, None, width, 49408)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: intermediate.image(nn.Linear(2, 2), torch.zeros(1)),
            "Linear: does not give patch tokens. Fix: choose a model",
        ),
        (
            lambda: intermediate.text(vit(), torch.zeros(1)),
            "ImageTower: does not give states of words. Fix: choose a model",
        ),
    ],
)
def test_other_families_are_refused_in_one_line(call, line):
    with pytest.raises(ModelError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_trunk_whose_parts_do_not_make_its_rows_is_refused():
    model = timm("test_resnet")
    trunk, forward = model.visual.trunk, model.visual.trunk.forward
    trunk.forward = lambda pixels: forward(pixels) + 1
    with pytest.raises(
        ModelError,
        match=r"TimmModel ResNet: does not give its own rows when its parts run one by one",
    ):
        intermediate.feature_dims(model)
