"""Weights files as training programs write them load as what they are: every wrapping and prefix
gives the same encoder, and nothing of it is guessed in silence.
"""

import warnings

import pytest
import torch
from safetensors.torch import save_file

from dimefm.models import open_clip, weights_file
from dimefm.models.loading import load_encoder
from tests.models.conftest import ARCH, refused

PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.module.",
    "_fsdp_wrapped_module.",
    "net.",
    "clip.",
    "clip_model.",
    "module.net._orig_mod.",
]


@pytest.fixture(scope="module")
def state(tiny_teacher):
    return {name: tensor.clone() for name, tensor in tiny_teacher.image_model.state_dict().items()}


@pytest.fixture
def loaded(tmp_path, tiny_teacher):
    """Return a function that saves an object and tells whether it loads as the teacher."""

    def load(content, name="weights.pt"):
        path = tmp_path / name
        save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
        encoder = load_encoder(f"{ARCH}/{path}", "cpu")
        return encoder.card.weights_sha256 == tiny_teacher.card.weights_sha256

    return load


def with_prefix(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_prefixes_are_removed(loaded, state, prefix, name):
    assert loaded(with_prefix(state, prefix), name)


def test_a_prefix_inside_the_names_is_removed(loaded, state):
    compiled = {}
    for name, tensor in state.items():
        compiled[name.replace("visual.", "visual._orig_mod.")] = tensor
    assert compiled.keys() != state.keys()
    assert loaded(compiled)


@pytest.mark.parametrize("wrapping", ["state_dict", "model", "model_state_dict", "module"])
def test_state_dicts_inside_tables_are_found(loaded, state, wrapping):
    rest = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "name": "mine"}
    assert loaded({**rest, wrapping: with_prefix(state, "module.")})
    assert loaded({"model": {wrapping: state}})


def test_torchs_averaged_model_and_a_class_around_the_model(loaded, state):
    assert loaded({"n_averaged": torch.tensor(7), **with_prefix(state, "module.")})
    around = {"loss.weight": torch.ones(3), **with_prefix(state, "model.")}
    assert loaded({"state_dict": around, "pytorch-lightning_version": "2.4"})


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_are_taken_and_named(loaded, state, capsys, averaged):
    last = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    assert loaded({"state_dict": last, averaged: with_prefix(state, "module.")})
    line = capsys.readouterr().err
    assert f"weights: '{averaged}' of " in line and "it also has 'state_dict'" in line


def test_weights_that_are_not_those_of_the_model_are_refused(tmp_path, state):
    path = tmp_path / "weights.pt"
    names = list(state)
    for content, words in (
        ({"epoch": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({name: state[name] for name in names[1:]}, "Missing key"),
        ({**state, "module.extra": state[names[0]]}, "Unexpected key"),
        ({f"encoder.{name}": state[name] for name in names}, "Missing key"),
        ({**state, names[-1]: torch.zeros(3, 3, 3)}, "size mismatch"),
    ):
        torch.save(content, path)
        message = refused(f"{ARCH}/{path}")
        assert words in message
        assert len(message) <= 500


def test_a_torchscript_program_is_not_run(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "it is a TorchScript program, as OpenAI's own" in refused(f"{ARCH}/{path}")


def test_positions_of_another_image_size_are_resized_with_a_note(tmp_path, capsys):
    model = open_clip.random("TinyCLIP-ViT-8M-16-Text-3M", 0)
    tensors = model.state_dict()
    tensors["visual.positional_embedding"] = torch.zeros(1 + 4 * 4, 256)
    torch.save(tensors, tmp_path / "weights.pt")
    weights_file.load(model, tmp_path / "weights.pt")
    assert "is resized from 17 to 197 places" in capsys.readouterr().err
