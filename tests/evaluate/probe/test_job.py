"""Tasks on datasets with several labels an image, and with models without a text tower."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from dimefm.errors import DataError, ModelError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.kept_predictions import read
from dimefm.evaluate.probe.job import evaluate_tasks
from dimefm.evaluate.probe.tasks import Plan
from dimefm.models.loading import load_encoder
from dimefm.models.timm_teacher import NoText
from tests.evaluate.datasets import tar

VOC = "voc-2007-classification"


def png(draw, marks):
    """Return an image whose gray levels tell which classes it has."""
    levels = np.repeat(40 + 180 * marks[:16].reshape(4, 4), 4, axis=0).repeat(4, axis=1)
    pixels = np.clip(levels + draw.normal(0, 20, size=levels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(file, "PNG")
    return file.getvalue()


def npy(marks):
    file = io.BytesIO()
    np.save(file, marks)
    return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 30)):
        members = {}
        for number in range(count):
            marks = (draw.random(20) < 0.25).astype(np.int64)
            marks[number % 20] = 1
            members[f"{number:03}.png"] = png(draw, marks)
            members[f"{number:03}.npy"] = npy(marks)
        tar(folder / VOC / f"{split}.tar", members)
    return folder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("ResNet-mini-64/random:0", "cpu")


@pytest.mark.parametrize(
    ("protocol", "has_text"), [("clean", True), ("elevater", False), ("logistic", True)]
)
def test_several_labels_an_image_with_and_without_a_text_tower(
    root, encoder, tmp_path, protocol, has_text
):
    if not has_text:
        encoder = dataclasses.replace(encoder, text_model=NoText(encoder.card.name))
    seeds = [3] if protocol == "clean" else [3, 4]
    plan = Plan(few_shot=(2,), protocol=protocol, seeds=seeds)
    scores = evaluate_tasks(encoder, root, tmp_path, plan, [VOC])
    [result] = scores.results
    assert (result.task, result.main_metric) == ("linear probe, 2-shot", "map_11_point")
    assert 0 < result.value <= 1
    kept = read(tmp_path / f"predictions/{VOC}-linear-probe-2-shot.npz")
    assert kept.probabilities.shape == (len(seeds), 30, 20)
    assert kept.labels.shape == (30, 20)
    assert kept.classes == list(load(VOC).classes)
    assert kept.protocol == protocol
    details = json.loads((tmp_path / "scores.json").read_text())["results"][0]["details"]
    assert [seed["trainable_parameters"] for seed in details["seeds"]] == (
        kept.trainable_parameters.tolist()
    )


def test_zero_shot_needs_a_text_tower(root, encoder, tmp_path):
    without_text = dataclasses.replace(encoder, text_model=NoText(encoder.card.name))
    with pytest.raises(ModelError, match="text"):
        evaluate_tasks(without_text, root, tmp_path, Plan(zero_shot=True, linear_probe=True), [VOC])


def test_a_metric_for_one_label_is_refused(root, encoder, tmp_path):
    plan = Plan(linear_probe=True)
    with pytest.raises(DataError, match="its images have several labels each"):
        evaluate_tasks(encoder, root, tmp_path, plan, [VOC], metric="accuracy")
