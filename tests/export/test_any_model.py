"""Every kind of model that is loaded is scored, and the same weights score the same."""

import json

import pytest

import dimefm
from dimefm.errors import ModelError
from dimefm.evaluate import zero_shot
from dimefm.evaluate.agreement.job import Choices, agreement
from dimefm.evaluate.preparing import settings_of
from dimefm.models.loading import load_encoder
from dimefm.models.onnx_folder import CONFIG, FACTS
from dimefm.runs.scores import SCORES, read_results
from tests.export.conftest import VIT, picture, write_folder

KINDS = ("open_clip", "hf", "onnx")
PACKAGES = {"open_clip": (), "hf": ("transformers",), "onnx": ("onnx", "onnxruntime")}
"""Packages that a kind needs besides the requirements."""
NAMES = ("disc", "star")


def require(kind):
    """Skip the test where a package that the kind needs is absent."""
    for name in PACKAGES[kind]:
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return an open_clip folder with random weights."""
    return write_folder(tmp_path_factory.mktemp("model") / "vit", VIT)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with a dataset of two classes."""
    top = tmp_path_factory.mktemp("sets")
    for number, name in enumerate(NAMES):
        folder = top / "shapes/test" / name
        folder.mkdir(parents=True)
        for image in range(6):
            picture(10 * number + image).save(folder / f"{image}.png")
    return top


@pytest.fixture(scope="module")
def scored(model, root, tmp_path_factory):
    """Return the scores of the model itself."""
    out = tmp_path_factory.mktemp("scores")
    return zero_shot.elevater(load_encoder(model, "cpu"), root, out, ["shapes"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_scored_as_its_model(model, root, scored, tmp_path, kind):
    require(kind)
    folder = tmp_path / kind
    dimefm.export(model, kind, folder)
    encoder = load_encoder(str(folder), "cpu")

    scores = zero_shot.elevater(encoder, root, tmp_path / "scores", ["shapes"])

    [result] = read_results(tmp_path / "scores" / SCORES)
    assert result.value == scored.results[0].value
    known = scores.encoder
    assert known["images_per_second"] > 0 and known["sentences_per_second"] > 0
    if kind == "onnx":
        assert known["image_macs"] is None and "ONNX" in known["macs_note"]
    else:
        assert known["image_macs"] == scored.encoder["image_macs"] > 0


def test_a_model_without_text_is_refused_before_anything_is_read(root, tmp_path):
    encoder = load_encoder("timm/test_resnet.r160_in1k/random:0", "cpu")

    with pytest.raises(ModelError, match="Fix: "):
        zero_shot.elevater(encoder, root, tmp_path / "scores", ["shapes"])
    assert not (tmp_path / "scores").exists()


SETTINGS = settings_of(batch_size=8, workers=1, decoder="turbo")


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_agrees_with_its_model(model, root, tmp_path, kind):
    require(kind)
    dimefm.export(model, kind, tmp_path / kind)
    export = load_encoder(str(tmp_path / kind), "cpu")

    choices = Choices(root, ["shapes"], resamples=100)
    scores = agreement(export, load_encoder(model, "cpu"), choices, None, SETTINGS)

    [result] = scores.results
    assert result.value == 1
    assert result.details["kl_teacher_student"] < 1e-4
    assert result.details["image"]["mean"] == pytest.approx(1, abs=1e-4)
    assert result.details["forgotten_classes"] == 0


def without_text(folder):
    """Make a folder of graphs one of fixed labels, as a page for the web has it."""
    path = folder / CONFIG
    content = json.loads(path.read_text())
    content[FACTS]["has_text"] = False
    path.write_text(json.dumps(content))
    for graph in (folder / "onnx").glob("text_model*"):
        graph.unlink()


def test_graphs_without_text_are_refused_before_anything_is_read(model, root, tmp_path):
    require("onnx")
    dimefm.export(model, "onnx", tmp_path / "onnx")
    without_text(tmp_path / "onnx")
    encoder = load_encoder(str(tmp_path / "onnx"), "cpu")

    assert not encoder.has_text
    choices = Choices(root, ["shapes"], resamples=100)
    for student, teacher in ((encoder, load_encoder(model, "cpu")), (encoder, encoder)):
        with pytest.raises(ModelError, match="no text tower, only the embeddings of fixed labels"):
            agreement(student, teacher, choices, tmp_path / "scores", SETTINGS)
    with pytest.raises(ModelError, match="no text tower"):
        zero_shot.elevater(encoder, root, tmp_path / "scores", ["shapes"])
    assert not (tmp_path / "scores").exists()
