"""``model.classify``: labels, templates and scores, as open_clip would compute them."""

import dataclasses
from pathlib import Path

import numpy as np
import open_clip as upstream
import pytest
import torch
from PIL import Image

import dimefm
from dimefm.errors import DataError
from dimefm.models.classify import Classifier, check_templates, filled

TEACHER = Path(__file__).parents[1] / "data" / "teacher"
LABELS = ["cat", "a {red} dog", "traffic light"]
TEMPLATES = ["a photo of a {label}.", "a drawing of {}", "{c}, {c}!"]


@pytest.fixture(scope="module")
def model():
    return dimefm.load(TEACHER, device="cpu")


@pytest.fixture(scope="module")
def images():
    return [Image.effect_noise((90, 60), 80).convert("RGB"), Image.new("RGB", (64, 64), "red")]


def sentences(label):
    return [f"a photo of a {label}.", f"a drawing of {label}", f"{label}, {label}!"]


@pytest.mark.parametrize("ensemble", [False, True])
def test_scores_are_those_of_open_clip(model, images, ensemble):
    """The reference is written with open_clip alone, from its documentation."""
    folder = f"local-dir:{TEACHER}"
    whole, _, preprocess = upstream.create_model_and_transforms(folder)
    whole.eval()
    tokenizer = upstream.get_tokenizer(folder)
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images])
        rows = whole.encode_image(pixels, normalize=True)
        weights = []
        for label in LABELS:
            prompts = sentences(label) if ensemble else sentences(label)[:1]
            mean = whole.encode_text(tokenizer(prompts), normalize=True).mean(0)
            weights.append(mean / mean.norm())
        logits = whole.logit_scale.exp() * rows @ torch.stack(weights).T
        expected = logits.softmax(-1).numpy()
    rankings = model.classify(images, LABELS, *([TEMPLATES] if ensemble else []))
    for ranking, row in zip(rankings, expected, strict=True):
        assert list(ranking) == [LABELS[place] for place in np.argsort(-row)]
        scores = [ranking[label] for label in LABELS]
        np.testing.assert_allclose(scores, row, atol=1e-5)
        assert sum(scores) == pytest.approx(1)


def test_one_image_gives_one_ranking_and_none_gives_none(model, images):
    [first, _] = model.classify(images, LABELS)
    assert model.classify(images[0], LABELS) == pytest.approx(first, abs=1e-5)
    assert model.classify([], LABELS) == []


def test_a_model_with_a_bias_judges_each_label_alone(model, images):
    card = dataclasses.replace(model.encoder.card, logit_bias=-10.0, logit_scale=112.7)
    siglip = dimefm.Model(dataclasses.replace(model.encoder, card=card))
    [alone] = siglip.classify(images[:1], ["cat"])  # one label is enough
    [among] = siglip.classify(images[:1], LABELS)
    assert among["cat"] == pytest.approx(alone["cat"])
    cosine = model.encode_image(images[0]) @ model.encode_text("a photo of a cat.")
    assert alone["cat"] == pytest.approx(1 / (1 + np.exp(10 - 112.7 * cosine)), rel=1e-4)


def test_extreme_logits_stay_numbers():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    for bias in (None, -5e3, 5e3):
        classifier = Classifier(("a", "b"), rows, 1e4, bias)
        scores = classifier.scores(rows)
        assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels: 0 given, expected 2 to"),
        (["cat"], "labels: 1 given, expected 2 to"),
        ("cat, dog", "labels: got one text, 'cat, dog'"),
        (["cat", " cat "], "label 2: 'cat' stands twice"),
        (["cat", ""], "label 2: is empty"),
        (["cat", "word " * 100], "label 'word word .*': its sentence has 1[0-9]* tokens"),
    ],
)
def test_labels_that_cannot_be_used_are_named(model, images, labels, message):
    with pytest.raises(DataError, match=message) as error:
        model.classify(images, labels)
    assert ". Fix: " in str(error.value)


@pytest.mark.parametrize("template", ["a photo", "{0}", "{label", "{name}"])
def test_a_template_without_a_place_is_refused(template):
    with pytest.raises(DataError, match="has no place for the label"):
        check_templates([template])


def test_a_label_is_never_a_template():
    assert filled("a {label} and {}", "{c}\\1") == "a {c}\\1 and {c}\\1"
