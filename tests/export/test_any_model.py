"""Every kind of model that is loaded is scored, and the same weights score the same."""

import pytest

import dimefm
from dimefm.errors import ModelError
from dimefm.evaluate import zero_shot
from dimefm.models.loading import load_encoder
from dimefm.runs.scores import SCORES, read_results
from tests.export.conftest import VIT, picture, write_folder

KINDS = ("open_clip", "hf", "onnx")
NAMES = ("disc", "star")


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
