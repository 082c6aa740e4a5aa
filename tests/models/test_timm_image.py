"""Image models of timm are students, whatever is between their pooling and their classifier."""

import pytest
import timm
import torch

from dimefm.errors import ModelError
from dimefm.models import student, timm_image

WITH_HIDDEN_LAYER = ["mobilenetv3_small_050", "lcnet_050", "test_mambaout"]
WITHOUT = ["test_byobnet", "test_convnext", "test_nfnet", "test_vit", "test_vit_relpos"]
MORE_WITH_HIDDEN_LAYER = [
    "cpubone_nano",
    "efficientvit_b0",
    "fasternet_t0",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "inception_next_atto",
    "lcnetv2_small",
    "lowformer_b0",
    "mobilenetv4_conv_small",
    "repghostnet_050",
]
MORE = [
    "convit_tiny",
    "crossvit_tiny_240",
    "levit_128s",
    "mobilevit_xxs",
    "pit_ti_224",
    "xcit_nano_12_p8_224",
]


def slow(names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def known(request):
    """Skip a network that an older timm does not have."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name and name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")


@pytest.mark.parametrize(
    "name", [*WITH_HIDDEN_LAYER, *WITHOUT, *slow(MORE_WITH_HIDDEN_LAYER), *slow(MORE)]
)
def test_a_network_is_built_in_the_teachers_dimension_and_learns(name):
    spec = student.resolve(f"timm/{name}", None, 48)
    tower, preprocess = student.build(spec, both_towers=False, seed=0)
    assert preprocess["size"] == spec.image_size
    pixels = torch.rand(2, 3, spec.image_size, spec.image_size)
    embeddings = tower(pixels) if not hasattr(tower, "encode_image") else tower.encode_image(pixels)
    assert embeddings.shape == (2, 48)
    embeddings.square().sum().backward()
    without = [name for name, weights in tower.named_parameters() if weights.grad is None]
    assert not without


@pytest.mark.parametrize("name", WITH_HIDDEN_LAYER)
def test_the_classifier_is_the_projection_behind_a_hidden_layer(name):
    vision = student.resolve(f"timm/{name}", None, 48).config["vision_cfg"]
    assert (vision["timm_pool"], vision["timm_proj"]) == ("avg", "")


def test_a_network_has_its_own_size_where_it_cannot_take_224_pixels():
    assert student.resolve("timm/halonet26t", None, 48).image_size == 256
    assert student.resolve("timm/halonet26t", 288, 48).image_size == 288
    assert student.resolve("timm/resnet18", None, 48).image_size == 224


def test_a_name_that_timm_does_not_know_is_refused_with_the_nearest():
    with pytest.raises(ModelError, match="unknown timm model 'resnet_18': did you mean 'resnet18'"):
        student.resolve("timm/resnet_18", None, 48)


def test_the_tag_of_pretrained_weights_is_found():
    assert timm.is_model("resnet18.a1_in1k")
    assert timm_image.pretrained_tag("timm/resnet18.a1_in1k") == "a1_in1k"
    assert timm_image.pretrained_tag("timm/resnet18") == ""
    assert timm_image.pretrained_tag("configs/student.json") == ""
