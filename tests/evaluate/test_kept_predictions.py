"""Predictions are read back as they were kept; a damaged file is one line."""

import dataclasses

import numpy as np
import pytest

from dimefm.cache.manifest import EncoderCard
from dimefm.errors import DataError
from dimefm.evaluate.kept_predictions import FIELDS, KeptPredictions, file_name, read, remove_others
from dimefm.evaluate.kept_predictions import keep as keep_of


def predictions(**changes):
    content = KeptPredictions(
        dataset="dtd",
        task="linear probe, 5-shot",
        metric="accuracy",
        shots=5,
        seeds=np.array([0, 1]),
        trainable_parameters=np.array([9, 9]),
        classes=["a", "b\0", "\udcff"],
        probabilities=np.full((2, 4, 3), 1 / 3, dtype=np.float32),
        labels=np.array([0, 1, 2, 0]),
        keys=["x", "y", "é", "z" * 300],
        sources=["test"] * 4,
        readable=np.array([0, 1, 3, 4]),
        images=5,
    )
    return dataclasses.replace(content, **changes)


def keep(out, content, weights="ab" * 32):
    return keep_of(out, content, EncoderCard("m", weights, 8, 100.0), protocol="clean")


def test_what_is_kept_is_read_back(tmp_path):
    path = keep(tmp_path, predictions())
    assert path == tmp_path / "predictions/dtd-linear-probe-5-shot.npz"
    found = read(path)
    assert (found.model, found.weights_sha256, found.protocol) == ("m", "ab" * 32, "clean")
    of_encoder = {"model": "m", "weights_sha256": "ab" * 32, "protocol": "clean"}
    for name in FIELDS:
        value = of_encoder.get(name, getattr(predictions(), name))
        np.testing.assert_array_equal(getattr(found, name), value)
        assert type(getattr(found, name)) is type(value)


@pytest.mark.parametrize("weights", ["ab" * 32, None])
def test_predictions_of_other_weights_are_removed(tmp_path, weights):
    same = keep(tmp_path, predictions(), weights)
    other = keep(tmp_path, predictions(dataset="b"), "cd" * 32)
    damaged = keep(tmp_path, predictions(dataset="c"), weights)
    damaged.write_bytes(damaged.read_bytes()[:99])
    remove_others(tmp_path, weights)
    assert list(same.parent.iterdir()) == [same]
    assert not other.exists()


def test_names_of_files_are_short_and_different():
    names = {file_name("n" * 300 + end, "zero-shot") for end in "ab"}
    assert len(names) == 2
    assert all(len(name.encode()) < 200 for name in names)
    assert "/" not in file_name("a/b", "x/y")


@pytest.mark.parametrize("damage", ["cut", "text", "lengths", "absent", "pickle"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = keep(tmp_path, predictions())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "text":
        path.write_text("no archive")
    elif damage == "lengths":
        path = keep(tmp_path, predictions(labels=np.zeros(3, dtype=np.int64)))
    elif damage == "absent":
        path.unlink()
    else:
        arrays = {name: np.array([object()], dtype=object) for name in FIELDS}
        np.savez(path, **arrays)
    with pytest.raises(DataError, match="cannot be read as predictions") as error:
        read(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
