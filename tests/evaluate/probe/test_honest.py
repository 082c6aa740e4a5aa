"""The protocols that choose on validation images: no label of the test set can change anything."""

import numpy as np
import pytest

from dimefm.errors import DataError
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe import clean, heads
from dimefm.evaluate.probe.data import Features
from dimefm.evaluate.probe.protocols import DEFAULT, PROTOCOLS
from dimefm.evaluate.probe.validation import (
    CUT,
    OWN_SPLIT,
    Candidate,
    best_of,
    log_loss,
    parts,
    split_places,
)

HONEST = sorted(PROTOCOLS.keys() - {"elevater"})


def features(n, several=False, seed=0, n_classes=4, dim=8):
    rng = np.random.default_rng(seed)
    centers = 1.5 * np.random.default_rng(9).normal(size=(n_classes, dim))
    if several:
        labels = (rng.random((n, n_classes)) < 0.4).astype(np.int64)
        rows = labels @ centers
    else:
        labels = np.arange(n) % n_classes
        rows = centers[labels]
    rows = rows + rng.normal(size=(n, dim))
    return Features(rows.astype(np.float32), labels)


class NoLabels:
    """Test images whose labels cannot be read."""

    def __init__(self, embeddings):
        self.embeddings = embeddings

    def __len__(self):
        return len(self.embeddings)

    @property
    def labels(self):
        raise AssertionError("labels of the test set were read")


@pytest.fixture(params=HONEST)
def protocol(request, monkeypatch):
    monkeypatch.setattr(clean, "MOST_EPOCHS", 10)
    return PROTOCOLS[request.param]


def score(protocol, train, test, several=False, seed=0, **options):
    metric = "map_11_point" if several else "accuracy"
    start = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    return protocol(train, test, start, metric, several, seed, n_classes=4, **options)


def test_the_default_is_honest():
    assert DEFAULT in HONEST


@pytest.mark.parametrize("several", [False, True])
def test_nothing_of_the_test_set_changes_the_head(protocol, several):
    train, test = features(80, several), features(60, several, seed=1)
    outcome = score(protocol, train, test, several)
    blind = score(protocol, train, NoLabels(test.embeddings), several)
    np.testing.assert_array_equal(outcome.probabilities, blind.probabilities)
    assert outcome.details == blind.details

    few = Features(test.embeddings[:7], test.labels[:7])
    of_few = score(protocol, train, few, several)
    np.testing.assert_allclose(of_few.probabilities, outcome.probabilities[:7], atol=1e-5)
    assert of_few.details == outcome.details


@pytest.mark.parametrize("several", [False, True])
def test_the_head_is_good_and_its_probabilities_are_some(protocol, several):
    test = features(200, several, seed=1)
    outcome = score(protocol, features(200, several), test, several)
    probabilities = outcome.probabilities
    assert probabilities.shape == (200, 4)
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    if several:
        assert METRICS["map_11_point"](probabilities, test.labels) > 0.8
    else:
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        assert METRICS["accuracy"](probabilities, test.labels) > 0.9


def test_the_own_validation_split_is_used_but_not_for_few_shot(protocol):
    train, test, own = features(60), features(20, seed=1), features(30, seed=2)
    with_own = score(protocol, train, test, validation=own).details
    assert with_own["validation_source"] == OWN_SPLIT
    assert (with_own["train_images"], with_own["validation_images"]) == (60, 30)
    for details in (
        score(protocol, train, test).details,
        score(protocol, train, test, validation=own, shots=15).details,
    ):
        assert details["validation_source"] == CUT
        assert (details["train_images"], details["validation_images"]) == (60, 12)


def test_one_shot_trains_on_one_of_two_images(protocol):
    details = score(protocol, features(8), features(20, seed=1), shots=1).details
    assert (details["train_images"], details["validation_images"]) == (4, 4)


def test_too_few_images_are_one_line(protocol):
    with pytest.raises(DataError, match=r"no class has two\. Fix: add"):
        score(protocol, features(4), features(20, seed=1))


def test_a_class_without_training_images_is_never_the_answer():
    train = features(60)
    train = train.take(np.flatnonzero(train.labels != 2))
    outcome = score(PROTOCOLS["logistic"], train, features(20, seed=1))
    assert (outcome.probabilities[:, 2] == 0).all()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_validation_is_a_fifth_of_each_class_and_leaves_every_class_an_image(several, seed):
    labels = features(103, several).labels
    if not several:
        labels = np.append(labels, 4)  # a class with a single image
    fit, val = split_places(labels, seed)
    assert sorted([*fit, *val]) == list(range(len(labels)))
    if several:
        assert labels[fit].any(axis=0).all()
        assert (labels[val].sum(axis=0) >= 0.2 * labels.sum(axis=0)).all()
    else:
        counts = np.bincount(labels)
        of_val = np.bincount(labels[val], minlength=5)
        assert of_val.tolist() == [*np.ceil(0.2 * counts[:4]), 0]
    again, _ = split_places(labels, seed)
    other, _ = split_places(labels, seed + 1)
    assert again.tolist() == fit.tolist() != other.tolist()


def test_the_chosen_settings_are_those_that_validate_best():
    split = parts(features(40), None, None, 0)
    start = np.zeros((4, 8), dtype=np.float32)
    choice = clean.choose(split, start, "accuracy", False, 0, 4)
    assert choice.heads == len(clean.RATES) * len(clean.DECAYS)
    alone = heads.train(
        split.fit, start, [choice.rate], [choice.decay], epochs=choice.best.epoch, seed=0
    )
    [logits] = alone.logits_of_each(split.val.embeddings)
    probabilities = clean.probabilities_of(logits, multilabel=False)
    assert METRICS["accuracy"](probabilities, split.val.labels) == choice.best.score
    assert log_loss(probabilities, split.val.labels) == pytest.approx(choice.best.loss, rel=1e-4)


def test_of_equal_scores_the_lower_loss_wins_and_then_the_first():
    tied = [Candidate(0, 1, 0.8, 0.5), Candidate(1, 1, 0.9, 0.7), Candidate(2, 3, 0.9, 0.6)]
    assert best_of(tied).number == 2
    assert best_of([*tied, Candidate(3, 1, 0.9, 0.6)]).number == 2


@pytest.mark.parametrize(("images", "epochs"), [(100, 50), (60_000, 21), (10_000_000, 10)])
def test_large_training_sets_are_shown_less_often(images, epochs):
    assert clean.epochs_for(images) == epochs


@pytest.mark.parametrize("several", [False, True])
def test_the_logarithmic_loss_is_that_of_scikit_learn(several):
    from sklearn.metrics import log_loss as reference

    labels = features(30, several).labels
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=30)
    if several:
        expected = np.mean([reference(labels[:, c], probabilities[:, c]) for c in range(4)])
    else:
        expected = reference(labels, probabilities)
    assert log_loss(probabilities, labels) == pytest.approx(expected)
