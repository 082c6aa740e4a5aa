"""Students of any name, size and config under the teacher's dimension."""

import json

import pytest
import torch

from dimefm.errors import ModelError
from dimefm.models import open_clip, student
from dimefm.models.encoder import weights_sha256
from dimefm.models.towers import ImageTower


def test_weights_of_a_student_are_a_function_of_the_seed():
    spec = student.resolve("ConvNeXt-mini-64", None, 16)
    one, again, other = (weights_sha256(student.build(spec, False, seed)[0]) for seed in (0, 0, 1))
    assert one == again != other


def tower(name, size=None, dim=16):
    """Build a student and return the shape of its rows for two images."""
    spec = student.resolve(name, size, dim)
    model, _ = student.build(spec, False, 0)
    assert isinstance(model, ImageTower)
    with torch.inference_mode():
        return spec.image_size, tuple(
            model.eval().encode_image(torch.randn(2, 3, spec.image_size, spec.image_size)).shape
        )


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_any_timm_model_is_a_student(name):
    assert tower(name, 64) == (64, (2, 16))


@pytest.mark.parametrize(
    ("name", "size"), [("ResNet-mini-64", 50), ("ConvNeXt-mini-64", 70), ("timm/test_vit", 48)]
)
def test_image_sizes_that_nobody_thought_of(name, size):
    assert tower(name, size) == (size, (2, 16))


def json_student(folder, **vision):
    path = folder / "mine.json"
    path.write_text(
        json.dumps(
            {"embed_dim": 4, "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, **vision}}
        )
    )
    return str(path)


def test_a_json_file_is_a_student(tmp_path):
    assert tower(json_student(tmp_path, image_size=20, patch_size=8)) == (20, (2, 16))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/test_rsnet", "unknown timm model 'test_rsnet': did you mean 'test_resnet'?"),
        ("ConvNeXt-mni-64", "did you mean 'ConvNeXt-mini-64'?"),
        ("none.json", "none.json: cannot be read as an open_clip config"),
    ],
)
def test_unknown_students_are_refused_in_one_line(name, words):
    with pytest.raises(ModelError) as error:
        tower(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_impossible_configs_are_refused_in_one_line(tmp_path):
    for vision in (
        {"image_size": [32, 64], "patch_size": 8},
        {"image_size": 32, "patch_size": "eight"},
        {"tower": 9},
    ):
        with pytest.raises(ModelError) as error:
            tower(json_student(tmp_path, **vision))
        assert "\n" not in str(error.value)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ModelError, match="no table 'vision_cfg'"):
        tower(str(tmp_path / "list.json"))


def test_a_student_without_text_tower_cannot_train_both():
    with pytest.raises(ModelError, match="no text tower"):
        student.build(student.resolve("timm/test_resnet", 64, 16), True, 0)


def test_a_student_may_have_openais_activation():
    plain, quick = student.resolve("ViT-T-16"), student.resolve("ViT-T-16-quickgelu")
    assert quick.config == {**plain.config, "quick_gelu": True}
    tower = student.new_tower(quick.config, text=False)
    assert open_clip.activation_of(tower) == "quick_gelu"
    with pytest.raises(ModelError, match="unknown architecture 'ViT-T-17-quickgelu'"):
        student.resolve("ViT-T-17-quickgelu")
