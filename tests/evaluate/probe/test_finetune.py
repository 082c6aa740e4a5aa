"""Fine-tuning changes a copy of the image tower alone, at its own rate, and never sees the test."""

import copy
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dimefm.errors import DataError, ModelError
from dimefm.evaluate.datasets.layouts import find
from dimefm.evaluate.metrics import accuracy
from dimefm.evaluate.probe import clean, finetune
from dimefm.evaluate.probe.data import load_data
from dimefm.evaluate.probe.validation import CUT, OWN_SPLIT
from dimefm.extract.extract import Settings
from dimefm.models.encoder import weights_sha256
from dimefm.models.onnx_folder import ImageGraph

CLASSES = ("flat", "stripes", "tiles")
SETTINGS = Settings(dtype="float32", batch_size=16, workers=1, decoder="turbo", progress=False)


def picture(kind, rng):
    """Return a small image of one of the classes, in a random color."""
    light, dark = rng.integers(120, 255, size=3), rng.integers(0, 110, size=3)
    rows, columns = np.indices((64, 64)) // int(rng.integers(6, 10))
    patterns = {"flat": rows * 0, "stripes": rows % 2, "tiles": (rows + columns) % 2}
    pixels = np.where(patterns[kind][..., None] == 1, light, dark)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("patterns")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3), ("test", 4)):
        for name in CLASSES:
            folder = root / "patterns" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(picture(name, rng))
    (root / "patterns" / "train" / "flat" / "x.png").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def data(root, tiny_teacher, tmp_path_factory):
    [dataset], _ = find(root, ["patterns"])
    store = tmp_path_factory.mktemp("features")
    return load_data(tiny_teacher, dataset, store, SETTINGS, with_val=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(clean, "MOST_EPOCHS", 10)
    monkeypatch.setattr(finetune, "RATES", (1e-2,))


def tune(encoder, data, shots=None, seed=0, **options):
    places = np.arange(len(data.train.features))
    options = finetune.Options(**{"epochs": 2, **options})
    return finetune.run(encoder, data, places, seed, SETTINGS, shots=shots, options=options)


def job_of(encoder, data, **options):
    split = finetune.parts(data.train.features, None, None, 0)
    places = np.arange(len(data.train.features))
    return finetune._Job(encoder, data, split, places, SETTINGS, 0, finetune.Options(**options))


def tuned_once(encoder, data, rate=1e-2, **options):
    """Return the tower and head before and after an epoch."""
    job = job_of(encoder, data, **options)
    before = job.new(job.split.fit, job.chosen_probe())
    after = copy.deepcopy(before)
    job.tune(after, job.fit_images(), rate, 1)
    return before, after


def test_an_outcome_is_whole_and_the_encoder_is_as_before(tiny_teacher, data):
    digest = weights_sha256(tiny_teacher.image_model)
    learns = [weight.requires_grad for weight in tiny_teacher.image_model.parameters()]
    outcome = tune(tiny_teacher, data)
    assert weights_sha256(tiny_teacher.image_model) == digest
    assert [weight.requires_grad for weight in tiny_teacher.image_model.parameters()] == learns
    details = outcome.details
    assert outcome.probabilities.shape == (12, 3)
    np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1, atol=1e-5)
    assert details["trainable_parameters"] == tiny_teacher.image_parameters + 3 * 128 + 3
    assert (details["train_images"], details["validation_source"]) == (30, OWN_SPLIT)
    assert details["tower_learning_rate"] == pytest.approx(0.1 * details["learning_rate"])
    assert details["validation"] >= details["validation_of_probe"]
    assert 0 <= details["epochs"] <= details["epochs_tried"] == 2
    again = tune(tiny_teacher, data)
    np.testing.assert_array_equal(again.probabilities, outcome.probabilities)


def test_labels_of_the_test_set_change_nothing(tiny_teacher, data):
    class NoLabels:
        embeddings = data.test.features.embeddings

    blind = dataclasses.replace(
        data, test=dataclasses.replace(data.test, features=NoLabels(), labels=None)
    )
    seen, unseen = tune(tiny_teacher, data, epochs=1), tune(tiny_teacher, blind, epochs=1)
    np.testing.assert_array_equal(seen.probabilities, unseen.probabilities)
    assert seen.details == unseen.details


def test_few_shot_validates_on_its_own_images(tiny_teacher, data):
    details = tune(tiny_teacher, data, shots=10, epochs=1).details
    assert details["validation_source"] == CUT
    assert (details["train_images"], details["validation_images"]) == (30, 6)


def test_without_training_the_tower_gives_what_the_probe_gives(tiny_teacher, data):
    outcome = tune(tiny_teacher, data, epochs=0)
    split = finetune.parts(data.train.features, data.val.features, None, 0)
    head, _ = clean.fit(split, data.start, "accuracy", False, 0, 3)
    [logits] = head.logits_of_each(data.test.features.embeddings)
    np.testing.assert_allclose(
        outcome.probabilities, clean.probabilities_of(logits, False), atol=2e-3
    )


def test_the_two_rates_are_two(tiny_teacher, data, monkeypatch):
    monkeypatch.setattr(finetune, "BATCH_SIZE", 1000)  # one step
    monkeypatch.setattr(finetune, "WEIGHT_DECAY", 0.0)

    def largest_change(of, **options):
        before, after = tuned_once(tiny_teacher, data, **options)
        pairs = zip(of(before).parameters(), of(after).parameters(), strict=True)
        return max(float((new - old).detach().abs().max()) for old, new in pairs)

    # the first step of Adam has the length of the learning rate
    assert largest_change(lambda tuned: tuned.head) == pytest.approx(1e-2, rel=1e-2)
    assert largest_change(lambda tuned: tuned.tower) == pytest.approx(1e-3, rel=1e-2)
    half = largest_change(lambda tuned: tuned.tower, tower_rate=0.5)
    assert half == pytest.approx(5e-3, rel=1e-2)
    assert largest_change(lambda tuned: tuned.tower, tower_rate=0.0) == 0


class NoisyTower(nn.Module):
    """A tower with what training mode would change: BatchNorm and dropout; beside it a text tower.

    ``vision_projection`` is a weight outside the image tower: a freeze by names would let it learn.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(
            nn.Conv2d(3, 8, 8, stride=8),
            nn.BatchNorm2d(8),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(8 * 64, 128),
        )
        self.text = nn.Linear(4, 4)
        self.vision_projection = nn.Parameter(torch.eye(128))

    def encode_image(self, pixels):
        return self.visual(pixels) @ self.vision_projection


def test_what_is_frozen_stays(tiny_teacher, data):
    model = NoisyTower().eval()
    encoder = dataclasses.replace(tiny_teacher, image_model=model)
    before, after = tuned_once(encoder, data)
    for name, buffer in before.tower.named_buffers():
        assert torch.equal(buffer, after.tower.get_buffer(name)), name
    for old, new in zip(before.model.text.parameters(), after.model.text.parameters(), strict=True):
        assert torch.equal(old, new)
    assert torch.equal(before.model.vision_projection, after.model.vision_projection)
    for old, new in zip(before.tower.parameters(), after.tower.parameters(), strict=True):
        assert not torch.equal(old, new)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(after(pixels), after(pixels))


def test_a_tower_learns_what_its_embeddings_do_not_tell(tiny_teacher, data):
    encoder = dataclasses.replace(tiny_teacher, image_model=NoisyTower().eval())
    job = job_of(encoder, data)
    tuned = job.new(job.split.fit, job.chosen_probe())
    images, labels = job.fit_images(), job.split.fit.labels
    before = accuracy(tuned.logits(images), labels)
    job.tune(tuned, images, 1e-2, 10)
    assert before < 0.7 and accuracy(tuned.logits(images), labels) > 0.9


def test_images_beyond_the_budget_are_read_again(tiny_teacher, data, monkeypatch):
    kept = job_of(tiny_teacher, data).fit_images()
    first = [pixels for pixels, _ in kept.batches(np.arange(len(kept)))]
    monkeypatch.setattr(finetune, "KEPT_BYTES", 3 * 3 * 64 * 64)
    few = job_of(tiny_teacher, data).fit_images()
    for images in (kept, few):
        again = [pixels for pixels, _ in images.batches(np.arange(len(images)))]
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert len(few._kept) == 3 and len(kept._kept) == len(kept)


def test_an_image_that_is_gone_is_one_line(root, tiny_teacher, data):
    path = root / "patterns" / "test" / "flat" / "0.png"
    before = path.read_bytes()
    path.write_bytes(b"gone")
    try:
        with pytest.raises(DataError, match=r"image 0 could be read before.*Fix: evaluate again"):
            tune(tiny_teacher, data, epochs=0)
    finally:
        path.write_bytes(before)


def test_a_tower_without_weights_is_refused(tiny_teacher):
    encoder = dataclasses.replace(tiny_teacher, image_model=ImageGraph(None))
    with pytest.raises(ModelError, match=r"cannot be fine-tuned.*ONNX.*Fix: "):
        finetune.refuse_untrainable(encoder)


@pytest.mark.parametrize(("images", "epochs"), [(10_000, 5), (320, 10), (10, 50)])
def test_few_images_are_shown_more_often(tiny_teacher, data, images, epochs):
    assert job_of(tiny_teacher, data).epochs(images) == epochs
    assert job_of(tiny_teacher, data, epochs=3).epochs(images) == 3
