"""Everything that ``load_encoder`` understands gives the encoder that it names, and everything else
one line of refusal.
"""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from dimefm.models import open_clip
from dimefm.models.loading import load_encoder
from tests.models.conftest import ARCH, SPEC, refused, same


@pytest.mark.parametrize("name", ["weights.pt", "trained.pt", "weights.safetensors"])
def test_an_architecture_and_a_file(tiny_teacher, files, name):
    found = load_encoder(f"{ARCH}/{files / name}", "cpu")
    assert same(found, tiny_teacher)
    assert found.card.identity() == tiny_teacher.card.identity()
    assert found.card.name == f"{ARCH}/{files / name}"


@pytest.mark.parametrize(
    "name", ["folder", "folder/open_clip_model.safetensors", "folder/other.pt"]
)
def test_a_folder_and_a_file_beside_its_config(tiny_teacher, files, name):
    found = load_encoder(str(files / name), "cpu")
    assert same(found, tiny_teacher)
    assert found.card.identity() == tiny_teacher.card.identity()


def test_a_relative_folder(tiny_teacher, files, monkeypatch):
    monkeypatch.chdir(files)
    assert load_encoder("folder", "cpu").card.identity() == tiny_teacher.card.identity()
    assert load_encoder(f"{ARCH}/weights.pt", "cpu").card.identity() == tiny_teacher.card.identity()


def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(
    tiny_teacher,
):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again, other = load_encoder(SPEC, "cpu"), load_encoder(f"{ARCH}/random:1", "cpu")
    assert torch.equal(torch.rand(3), expected)
    assert again.card == tiny_teacher.card
    assert other.card.weights_sha256 != tiny_teacher.card.weights_sha256
    assert again.card.name == SPEC


@pytest.mark.parametrize(
    ("tag", "activation"), [("openai", "quick_gelu"), ("laion2b_s34b_b79k", "standard")]
)
def test_the_activation_is_the_one_that_a_tag_was_trained_with(tag, activation, monkeypatch):
    import open_clip as upstream

    monkeypatch.setattr(
        upstream.factory, "download_pretrained", lambda *args, **options: "weights"
    )  # no network
    monkeypatch.setattr(upstream.factory, "load_checkpoint", lambda *args, **options: {})
    assert open_clip.activation_of(open_clip.create("ViT-B-32", tag)) == activation


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ARCH, f"an architecture without weights. Fix: say {ARCH}/TAG"),
        ("ViT-B-32", "ViT-B-32/random:SEED"),
        (
            "ResNet-mini-46/random:0",
            "unknown architecture 'ResNet-mini-46': did you mean 'ResNet-mini-64'?",
        ),
        ("ResNet-mini-46", "unknown architecture"),
        ("ResNet-mini-46/none.pt", "unknown architecture"),
        (f"{ARCH}/no/such/file.pt", "'no/such/file.pt' is neither a tag"),
        ("ViT-B-32/opnai", "'opnai' is neither a tag of ViT-B-32"),
        ("/no/such/teacher", "no such file or folder"),
        ("./teachr", "no such file or folder"),
        ("runs/first", "no such file or folder"),
    ],
)
def test_specs_that_name_nothing_are_refused(spec, words):
    assert words in refused(spec)


def test_folders_and_files_that_are_no_encoder_are_refused(files, tmp_path):
    assert "neither the folder of a finished run (run.json) nor of open_clip" in refused(
        str(tmp_path)
    )
    assert "does not say its architecture. Fix: write ARCH/" in refused(str(files / "weights.pt"))
    (tmp_path / "run.json").write_text("{")
    assert "cannot be read" in refused(str(tmp_path))
    (tmp_path / "run.json").write_text('{"kind": "sculpture"}')
    assert "kind 'sculpture'" in refused(str(tmp_path))


def test_weights_that_do_not_fit_are_refused(files, tmp_path):
    assert "cannot be loaded" in refused(f"ConvNeXt-mini-64/{files / 'weights.pt'}")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((files / "weights.safetensors").read_bytes()[:5000])
    assert "cannot be loaded" in refused(f"{ARCH}/{cut}")
    shutil.copytree(files / "folder", tmp_path / "bare")
    for name in ("open_clip_model.safetensors", "other.pt"):
        (tmp_path / "bare" / name).unlink()
    assert "cannot be loaded" in refused(str(tmp_path / "bare"))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_not_executed(tmp_path):
    payload = {"state_dict": Hostile(tmp_path / "owned")}
    torch.save(payload, tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(payload))
    for name in ("hostile.pt", "plain.pt"):
        assert "cannot be loaded" in refused(f"{ARCH}/{tmp_path / name}")
    assert not (tmp_path / "owned").exists()


def test_the_loader_is_found_where_it_was_before():
    from dimefm.models import encoder

    assert encoder.load_encoder is load_encoder
    with pytest.raises(AttributeError, match="no attribute 'load_decoder'"):
        _ = encoder.load_decoder
