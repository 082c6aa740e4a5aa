"""Teachers and students that cannot work are refused in one line before any work is done."""

import json
import pickle
import sys

import pytest
import torch

from dimefm.errors import ModelError
from dimefm.models import open_clip, student
from dimefm.models.loading import load_encoder


@pytest.mark.parametrize("seed", ["9" * 23, "-1", "x", "１"])
def test_a_seed_that_torch_cannot_take_is_refused(seed):
    with pytest.raises(
        ModelError,
        match="expected ResNet-mini-64/random:SEED with a whole number of at most 18 digits",
    ):
        load_encoder(f"ResNet-mini-64/random:{seed}", "cpu")


def test_a_tokenizer_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ModelError,
        match=r"tokenizer needs the package transformers.*pip install 'dimefm\[transformers",
    ):
        open_clip.tokenizer_of("ViT-B-16-SigLIP")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_cfg": {"embed_dim": 8, "vision_cfg": {}}},
            "'model_cfg' has no text_cfg; expected embed_dim, vision_cfg and",
        ),
        ({"model_cfg": {}}, "has no embed_dim and no vision_cfg and no text_cfg"),
        ({"model_cfg": 3}, "cannot be read as an open_clip config"),
        ({}, "cannot be read as an open_clip config"),
    ],
)
def test_a_folder_whose_config_lacks_a_tower_is_refused(tmp_path, config, message):
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_encoder(str(tmp_path), "cpu")


def write_object(path):
    torch.save({"state_dict": {"x": torch.ones(1)}, "args": Harmless()}, path)


def write_script(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))


class Harmless:
    """Something that is not a tensor."""


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize(
    "write", [write_object, write_script, lambda path: path.write_bytes(pickle.dumps(Harmless()))]
)
def test_a_pt_file_with_objects_gets_our_own_advice(tmp_path, write):
    write(tmp_path / "x.pt")
    with pytest.raises(
        ModelError, match="x.pt: cannot be loaded: the file is damaged, or holds other"
    ) as caught:
        load_encoder(f"ResNet-mini-64/{tmp_path / 'x.pt'}", "cpu")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_architecture_say_which_do_not_fit(tmp_path):
    torch.save({"odd": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="Missing key") as caught:
        load_encoder(f"ResNet-mini-64/{tmp_path / 'x.pt'}", "cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("both", [False, True])
def test_trying_a_student_changes_nothing(both, monkeypatch):
    spec = student.resolve("ResNet-mini-32", None, None if both else 16)
    tried = student.build(spec, both, 5)[0]
    monkeypatch.setattr(student, "_try", lambda *args: None)
    untried = student.build(spec, both, 5)[0]
    assert tried.training == untried.training
    theirs = untried.state_dict()
    assert tried.state_dict().keys() == theirs.keys()
    for name, tensor in tried.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(("size", "batch_size"), [(32, 1), (32, 2), (64, 1)])
def test_one_image_a_step_is_refused_only_where_it_cannot_be_normalised(size, batch_size):
    spec = student.resolve("timm/test_resnet", size, 16)
    if (size, batch_size) == (32, 1):  # its last feature map has one place
        with pytest.raises(
            ModelError,
            match="timm/test_resnet: cannot learn from 1 image a step .*--batch-size of 2 or more",
        ):
            student.build(spec, False, 0, batch_size)
    else:
        student.build(spec, False, 0, batch_size)


def test_a_student_of_another_width_than_asked_is_refused(tmp_path):
    config = {
        "embed_dim": 8,
        "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "none"},
    }
    (tmp_path / "s.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"s\.json at 64 pixels: cannot encode an image: .*expected \[2, 8\]"
    ):
        student.build(student.resolve(str(tmp_path / "s.json"), 64, 8), False, 0)


def test_an_unknown_timm_model_is_refused_for_both_towers(tmp_path):
    config = open_clip.config_of("ResNet-mini-32")
    config["vision_cfg"]["timm_model_name"] = "test_rsnet"
    with pytest.raises(
        ModelError, match="unknown timm model 'test_rsnet': did you mean 'test_resnet'"
    ):
        open_clip.from_config(config)
