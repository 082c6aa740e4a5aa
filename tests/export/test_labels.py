"""Class embeddings that leave with a model, and come back as files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dimefm
from dimefm.errors import ModelError
from dimefm.export.labels import read
from dimefm.models.model import load

SPEC = "ResNet-mini-64/random:0"
NAMES = ["cat", "dog", "traffic light"]
WAYS = {
    "lines": ("names.txt", "cat\n\n dog \ntraffic light\n"),
    "list": ("names.json", json.dumps(NAMES)),
    "table": ("names.json", json.dumps({"labels": NAMES, "templates": ["a {}", "{label}!"]})),
}


@pytest.fixture(scope="module")
def model():
    return load(SPEC, "cpu")


@pytest.mark.parametrize("way", WAYS)
def test_names_are_embedded_as_predict_does(way, model, tmp_path):
    name, content = WAYS[way]
    (tmp_path / name).write_text(content)
    labels = read(tmp_path / name, model)
    templates = ["a {}", "{label}!"] if way == "table" else ["a photo of a {label}."]
    expected = model.classifier(NAMES, templates)
    assert labels.names == tuple(NAMES)
    assert np.allclose(labels.embeddings, expected.embeddings, atol=1e-6)


def test_embeddings_that_were_exported_are_read_back(model, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    out = tmp_path / "out"
    dimefm.export(SPEC, "open_clip", out, labels=tmp_path / "names.txt")
    before = read(tmp_path / "names.txt", model)
    for name in ("labels.json", "labels.safetensors"):
        after = read(out / name, model)
        assert after.names == before.names and after.templates == before.templates
        assert np.allclose(after.embeddings, before.embeddings, atol=1e-7), name
    content = json.loads((out / "labels.json").read_text())
    assert content["logit_scale"] == pytest.approx(model.logit_scale)
    assert json.loads((out / "export.json").read_text())["facts"]["labels"]["classes"] == 3


def unit(rows):
    return np.random.default_rng(0).normal(size=rows).astype(np.float32)


FAULTS = {
    "empty": ("a.txt", "\n", "expected 2 to"),
    "twice": ("a.txt", "cat\ncat\n", "label 2: 'cat' stands twice"),
    "no list": ("a.json", '{"labels": "cat"}', "'labels' is no list"),
    "no labels": ("a.json", '{"names": []}', "has no 'labels'"),
    "number": ("a.json", '["cat", 7]', "label 2: is 7, expected a text"),
    "template": ("a.json", '{"labels": ["a", "b"], "templates": ["a photo"]}', "no place"),
    "ragged": ("a.json", '{"labels": ["a", "b"], "embeddings": [[1], [1, 2]]}', "no lists"),
    "width": ("a.json", '{"labels": ["a", "b"], "embeddings": [[1], [2]]}', r"expected \[2, 128\]"),
    "one template": ("a.json", '{"labels": ["a", "b"], "templates": "a {}"}', "list of sentences"),
    "templates": ("a.json", '{"labels": ["a", "b"], "templates": 5}', "list of sentences"),
    "damaged": ("a.safetensors", "no tensors", "cannot be read"),
    "absent": ("b.txt", None, "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_in_one_line(fault, model, tmp_path):
    name, content, reason = FAULTS[fault]
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=reason) as error:
        read(tmp_path / name, model)
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)


def test_an_embedding_without_direction_is_refused(model, tmp_path):
    rows = unit((2, 128))
    rows[1] = 0
    save_file({"embeddings": rows}, tmp_path / "a.safetensors", {"labels": '["a", "b"]'})
    with pytest.raises(ModelError, match="label 1: its embedding has no direction"):
        read(tmp_path / "a.safetensors", model)


def test_templates_of_given_embeddings_are_those_that_the_file_states(model, tmp_path):
    rows = unit((2, 128)).tolist()
    table = {"labels": ["a", "b"], "embeddings": rows}
    (tmp_path / "a.json").write_text(json.dumps(table))
    assert read(tmp_path / "a.json", model).templates == ()
    (tmp_path / "a.json").write_text(json.dumps({**table, "templates": ["a {}"]}))
    assert read(tmp_path / "a.json", model).templates == ("a {}",)
    marks = {"labels": '["a", "b"]', "templates": "5"}
    save_file({"embeddings": unit((2, 128))}, tmp_path / "a.safetensors", marks)
    with pytest.raises(ModelError, match="list of sentences"):
        read(tmp_path / "a.safetensors", model)


def test_the_tensors_say_their_labels(model, tmp_path):
    save_file({"embeddings": unit((2, 128))}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="the names as JSON in the metadata"):
        read(tmp_path / "a.safetensors", model)
    assert load_file(tmp_path / "a.safetensors")["embeddings"].shape == (2, 128)
