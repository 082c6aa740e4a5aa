"""A part of each image is hidden from students of every family in training, and none in
evaluation.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dimefm.models import open_clip, patch_dropout
from dimefm.models.towers import ImageTower
from dimefm.train.student import Extras, Student

VIT = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 16}


def timm(name, size, pool=""):
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": "linear", "image_size": size}


TRANSFORMERS = {
    "ViT, class token": VIT,
    "ViT, mean of patches": {**VIT, "pool_type": "avg"},
    "ViT, that drops patches itself": {**VIT, "patch_dropout": 0.25},
    "timm ViT": timm("test_vit", 64),
    "timm ViT, register tokens": timm("test_vit2", 64),
    "timm ViT, distilled": timm("deit_tiny_distilled_patch16_224", 32),
    "timm Eva, rotary positions": timm("eva02_tiny_patch14_224", 28),
}
OTHERS = {
    "ModifiedResNet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 32},
    "timm ResNet": timm("test_resnet", 32),
    "timm ConvNeXt": timm("test_convnext", 32),
    "MobileViT": timm("mobilevit_xxs", 32),
    "Swin": timm("swin_s3_tiny_224", 32),
    "EfficientNet": timm("test_efficientnet", 32),
}
SHARE = 0.5


def tower(vision, share=0.0):
    """Return a student with an image tower, masked by ``share``."""
    torch.manual_seed(0)
    model = ImageTower(open_clip.image_tower({"embed_dim": 8, "vision_cfg": dict(vision)}))
    found = Student(model, open_clip.default_preprocess(vision["image_size"]))
    found.mask = patch_dropout.hide(model, share)
    return found


def pixels_of(vision):
    side, draw = vision["image_size"], torch.Generator().manual_seed(1)
    return torch.randint(256, (4, side, side, 3), dtype=torch.uint8, generator=draw)


def rows(model, pixels, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(pixels, None)["rows"]


def steady(model):
    """Leave nothing random or changing in training but what is hidden: no dropout, and statistics
    as they are.
    """
    model.train()
    for module in model.modules():
        if (
            isinstance(module, nn.Dropout)
            or hasattr(module, "drop_prob")
            or isinstance(module, nn.BatchNorm2d)
        ):
            module.eval()
    return model


FAMILIES = [
    pytest.param(vision, id=name, marks=[pytest.mark.slow] if name == "Swin" else [])
    for name, vision in (TRANSFORMERS | OTHERS).items()
]


@pytest.mark.parametrize("vision", FAMILIES)
def test_a_student_of_any_family_is_masked_in_training_only(vision):
    plain, pixels = (
        tower({k: v for k, v in vision.items() if k != "patch_dropout"}),
        pixels_of(vision),
    )
    masked = tower(vision, SHARE)
    assert masked.state_dict().keys() == plain.state_dict().keys()
    masked.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        rows(masked.eval(), pixels, 0), rows(plain.eval(), pixels, 1), rtol=0, atol=0
    )
    steady(masked), steady(plain)
    torch.testing.assert_close(rows(plain, pixels, 0), rows(plain, pixels, 1), rtol=0, atol=0)
    found = rows(masked, pixels, 0)
    assert (
        not torch.isclose(found, rows(plain, pixels, 0), rtol=1e-3, atol=1e-5).all(1).any()
    )  # in each image
    assert not torch.isclose(
        found, rows(masked, pixels, 1), rtol=1e-3, atol=1e-5
    ).all()  # anew each time
    assert torch.equal(found, rows(masked, pixels, 0))  # by the seed alone
    assert torch.equal(found, rows(copy.deepcopy(masked), pixels, 0))
    masked.extras = Extras(("patches", "hidden"))
    assert torch.equal(
        found, rows(masked, pixels, 0)
    )  # also of a student that tells more than its rows


@pytest.mark.parametrize("vision", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_a_transformer_computes_fewer_tokens(vision):
    model, counts = tower(vision, SHARE), []
    visual = model.model.visual
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    blocks[-1].register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[1]))
    rows(model.eval(), pixels_of(vision), 0)
    rows(model.train(), pixels_of(vision), 0)
    prefix = visual.trunk.num_prefix_tokens if hasattr(visual, "trunk") else 1
    assert counts[1] - prefix == (counts[0] - prefix) // 2


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("size", [14, 28, 224])
def test_the_share_of_pixels_is_as_asked(share, size):
    """Whole blocks of the mean colour, the same in all three colours, others in each image."""
    module, seen = patch_dropout.Blocks(share), torch.ones(3, 3, size, size)
    hidden = module.train()(seen) == 0
    assert hidden.float().mean((1, 2, 3)).tolist() == pytest.approx([share] * 3)
    side = size // patch_dropout.BLOCKS
    blocks = (
        hidden.view(3, 3, patch_dropout.BLOCKS, side, patch_dropout.BLOCKS, side)
        .transpose(3, 4)
        .flatten(4)
    )
    assert torch.equal(blocks.any(-1), blocks.all(-1))
    assert torch.equal(hidden[:, :1].expand_as(hidden), hidden)
    assert not torch.equal(hidden[0], hidden[1])
    assert module.eval()(seen) is seen


@given(
    st.integers(1, 5), st.integers(1, 300), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32)
)
def test_what_is_kept_are_different_places_with_the_lowest_noise(images, places, share, seed):
    noise = torch.rand(images, places, generator=torch.Generator().manual_seed(seed))
    found = patch_dropout.kept(noise, share)
    assert found.shape == (images, max(1, int(places * (1 - share))))
    assert all(len(set(row)) == len(row) for row in found.tolist())
    left_out = noise.clone().scatter_(1, found, torch.inf).amin(1)
    assert (noise.gather(1, found).amax(1) <= left_out).all()


def test_a_share_of_0_changes_nothing():
    model = tower({**VIT, "patch_dropout": 0.25}).model
    before = model.visual.patch_dropout
    assert isinstance(patch_dropout.hide(model, 0.0), nn.Identity)
    assert model.visual.patch_dropout is before
