"""Metrics against ELEVATER's own values, against scikit-learn and plain twins, and their
invariants.

``golden/elevater_golden.npz`` was made by the toolkit's functions on fixed inputs; its zero-shot
images are the first 24 of the 40 in the shared original, to keep the file small.
"""

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from dimefm.errors import DataError
from dimefm.evaluate.metrics import METRICS, accuracy, chance, map_11_point, mean_per_class, roc_auc

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "elevater_golden.npz")
seeds = st.integers(0, 10_000)


def case(seed, n=40, classes=4, ties=True):
    """Return scores with many equal values, and labels in which every class has rows."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (n, classes)) / 5 if ties else rng.random((n, classes))
    return scores, rng.permutation(np.arange(n) % classes)


def marks(seed, n=30, classes=3):
    scores, _ = case(seed, n, classes)
    targets = np.random.default_rng(seed + 1).integers(0, 2, (n, classes))
    targets[0], targets[1] = 1, 0
    return scores, targets


@pytest.mark.parametrize(
    ("metric", "scores", "labels", "expected"),
    [
        (accuracy, "mc_scores", "mc_labels", "accuracy"),
        (mean_per_class, "mc_scores", "mc_labels", "mean_per_class"),
        (accuracy, "absent_scores", "absent_labels", "absent_accuracy"),
        (mean_per_class, "absent_scores", "absent_labels", "absent_mean_per_class"),
        (map_11_point, "ml_scores", "ml_targets", "map_11pt"),
        (roc_auc, "auc_scores", "auc_labels", "roc_auc"),
    ],
)
def test_equals_the_toolkit(metric, scores, labels, expected):
    assert metric(GOLDEN[scores], GOLDEN[labels]) == pytest.approx(
        float(GOLDEN[expected]), abs=1e-12
    )


def eleven_points(scores, targets):
    """The loop over scikit-learn's curve, as plainly as it can be said."""
    values = []
    for c in range(scores.shape[1]):
        precision, recall, _ = sklearn.metrics.precision_recall_curve(targets[:, c], scores[:, c])
        values += [
            max(p for p, r in zip(precision, recall, strict=True) if r >= t)
            for t in np.linspace(1, 0, 11)
        ]
    return sum(values) / len(values)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_equals_scikit_learn(seed):
    scores, labels = case(seed)
    guess = scores.argmax(axis=1)
    assert accuracy(scores, labels) == pytest.approx(sklearn.metrics.accuracy_score(labels, guess))
    assert mean_per_class(scores, labels) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels, guess)
    )
    two, sides = scores[:, :2], labels % 2
    assert roc_auc(two, sides) == pytest.approx(sklearn.metrics.roc_auc_score(sides, two[:, 1]))
    assert map_11_point(*marks(seed)) == pytest.approx(eleven_points(*marks(seed)))


def test_roc_auc_counts_pairs():
    scores, labels = case(3, n=12, classes=2)
    wins = [(p > q) + (p == q) / 2 for p in scores[labels == 1, 1] for q in scores[labels == 0, 1]]
    assert roc_auc(scores, labels) == pytest.approx(sum(wins) / len(wins))


def test_absent_classes_leave_the_contest():
    scores = np.array([[0.1, 0.2, 0.7], [0.3, 0.2, 0.5], [0.1, 0.6, 0.3]])
    labels = np.array([1, 0, 1])
    assert accuracy(scores, labels) == pytest.approx(1 / 3)
    assert mean_per_class(scores, labels) == 1.0


def test_a_class_without_positives_scores_one_eleventh():
    scores, targets = marks(0)
    targets[:, 1] = 0
    kept = [0, 2]
    whole = map_11_point(scores, targets)
    assert whole == pytest.approx(
        (2 * map_11_point(scores[:, kept], targets[:, kept]) + 1 / 11) / 3
    )


@pytest.mark.parametrize("name", METRICS)
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_order_of_rows_and_monotone_scores_change_nothing(name, seed):
    scores, labels = marks(seed) if name == "map_11_point" else case(seed, classes=2)
    order = np.random.default_rng(seed).permutation(len(labels))
    value = METRICS[name](scores, labels)
    assert 0 <= value <= 1
    assert METRICS[name](scores[order], labels[order]) == pytest.approx(value)
    assert METRICS[name](2 * scores - 7, labels) == pytest.approx(value)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_scores_reach_one(name):
    labels = np.array([0, 1, 1, 0])
    perfect = np.eye(2)[labels]
    assert (
        METRICS[name](perfect, np.eye(2, dtype=int)[labels] if name == "map_11_point" else labels)
        == 1.0
    )


CHANCE_OF_TWO = {"accuracy": 0.5, "mean_per_class": 0.5, "map_11_point": 0.5, "roc_auc": 0.5}


@pytest.mark.parametrize("name", METRICS)
def test_random_scores_reach_chance(name):
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    targets = np.eye(2, dtype=int)[labels] if name == "map_11_point" else labels
    expected = chance(name, 2, targets)
    found = METRICS[name](rng.random((4000, 2)), targets)
    assert expected == CHANCE_OF_TWO.get(name, expected)
    assert found == pytest.approx(expected, abs=0.12 if name == "map_11_point" else 0.03)


def test_chance_that_cannot_be_said_is_none():
    assert chance("map_11_point", 20) is None
    assert chance("accuracy", 4) == 0.25
    assert chance("mean_per_class", 4, np.array([0, 0, 3])) == 0.5


@pytest.mark.parametrize(
    ("name", "scores", "labels", "words"),
    [
        ("accuracy", np.full((2, 2), np.nan), np.array([0, 1]), "row 0 are not finite"),
        ("accuracy", np.zeros((2, 2)), np.array([0, 2]), "run from 0 to 2"),
        ("accuracy", np.zeros((2, 2)), np.array([-1, 1]), "run from -1 to 1"),
        ("accuracy", np.zeros((2, 2)), np.array([0]), "expected 2 integer labels"),
        ("mean_per_class", np.zeros((2, 2)), np.array([0.0, 1.0]), "found float64"),
        ("mean_per_class", np.zeros((0, 2)), np.array([], dtype=int), r"found shape \(0, 2\)"),
        ("roc_auc", np.zeros((2, 3)), np.array([0, 1]), "expected two classes"),
        ("roc_auc", np.zeros((2, 2)), np.array([1, 1]), "rows in both"),
        ("map_11_point", np.zeros((2, 2)), np.array([0, 1]), "expected 0/1 labels"),
        ("map_11_point", np.zeros((1, 2)), np.array([[0, 2]]), "expected 0/1 labels"),
    ],
)
def test_refuses_what_has_no_value(name, scores, labels, words):
    with pytest.raises(DataError, match=words):
        METRICS[name](scores, labels)
