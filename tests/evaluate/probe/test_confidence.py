"""Intervals over test images and seeds, against the metric itself on each resample."""

import numpy as np
import pytest

from dimefm.errors import DataError
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe import confidence
from dimefm.evaluate.probe.confidence import (
    bootstrap,
    over_seeds,
    paired_bootstrap,
    resample_counts,
)


def scored(metric, n=120, seed=0):
    """Return probabilities with many equal ones, and labels that fit the metric."""
    rng = np.random.default_rng(seed)
    n_classes = 2 if metric == "roc_auc" else 4
    if metric == "map_11_point":
        labels = (rng.random((n, n_classes)) < 0.3).astype(np.int64)
        raw = labels + rng.normal(size=labels.shape)
    else:
        labels = np.arange(n) % n_classes
        raw = 1.5 * np.eye(n_classes)[labels] + rng.normal(size=(n, n_classes))
    return np.round(1 / (1 + np.exp(-raw)), 1), labels


def scores_of_resamples(metric, probabilities, labels, seed, resamples=50):
    values = []
    for counts in resample_counts(len(labels), resamples, seed):
        for count in counts:
            places = np.repeat(np.arange(len(labels)), count)
            values.append(METRICS[metric](probabilities[places], labels[places]))
    return np.array(values)


def test_every_metric_has_its_bootstrap():
    assert confidence._SCORERS.keys() == METRICS.keys()


@pytest.mark.parametrize("at_once", [1, 300, 1 << 22])
@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_is_that_of_the_metric_on_each_resample(metric, at_once, monkeypatch):
    monkeypatch.setattr(confidence, "COUNTS_AT_ONCE", at_once)
    probabilities, labels = scored(metric)
    expected = scores_of_resamples(metric, probabilities, labels, seed=3)
    interval = bootstrap(probabilities, labels, metric, resamples=50, level=0.8, seed=3)
    assert interval.value == METRICS[metric](probabilities, labels)
    np.testing.assert_allclose(
        [interval.low, interval.high], np.quantile(expected, [0.1, 0.9]), atol=1e-12
    )
    np.testing.assert_allclose(interval.deviation, expected.std(ddof=1), atol=1e-12)
    assert (interval.over, interval.count) == ("test images", 50)


@pytest.mark.parametrize("metric", METRICS)
def test_pairs_are_resampled_together(metric):
    first, labels = scored(metric)
    second, _ = scored(metric, seed=1)
    expected = scores_of_resamples(metric, first, labels, 5)
    expected -= scores_of_resamples(metric, second, labels, 5)
    comparison = paired_bootstrap(first, second, labels, metric, resamples=50, seed=5)
    np.testing.assert_allclose(
        [comparison.low, comparison.high], np.quantile(expected, [0.025, 0.975]), atol=1e-12
    )
    assert comparison.difference == comparison.first - comparison.second
    equal = paired_bootstrap(first, first, labels, metric, resamples=50)
    assert (equal.difference, equal.low, equal.high, equal.p_value) == (0, 0, 0, 1)


def test_a_clear_difference_has_a_small_p_value_and_a_slight_one_has_not():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=400)
    good = np.eye(3)[np.where(rng.random(400) < 0.9, labels, 0)]
    worse = np.eye(3)[np.where(rng.random(400) < 0.6, labels, 0)]
    slightly = good.copy()
    slightly[:2] = np.eye(3)[(labels[:2] + 1) % 3]
    clear = paired_bootstrap(good, worse, labels, "accuracy")
    slight = paired_bootstrap(good, slightly, labels, "accuracy")
    assert clear.low > 0 and clear.p_value < 0.01
    assert slight.low <= 0 and slight.p_value > 0.05


def test_intervals_of_95_percent_hold_the_truth_in_about_95_percent():
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        right = rng.random(150) < 0.7
        probabilities = np.eye(2)[right.astype(int)]
        labels = np.ones(150, dtype=np.int64)
        interval = bootstrap(probabilities, labels, "accuracy", resamples=200, seed=trial)
        held += interval.low <= 0.7 <= interval.high
    assert 180 <= held <= 198


def test_mean_per_class_without_a_rare_class_is_over_the_others():
    labels = np.array([0] * 30 + [1] * 30 + [2])
    probabilities = np.eye(3)[labels]
    interval = bootstrap(probabilities, labels, "mean_per_class", resamples=100)
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


def test_the_interval_over_seeds_is_students():
    interval = over_seeds([0.70, 0.72, 0.71])
    assert interval.value == pytest.approx(0.71)
    assert interval.deviation == pytest.approx(0.01)
    assert interval.high - 0.71 == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    assert 0.71 - interval.low == pytest.approx(interval.high - 0.71)
    assert over_seeds([0.99, 1.0]).high == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, y: bootstrap(p, y, "accurcy"), "unknown metric 'accurcy'"),
        (lambda p, y: bootstrap(p, y, "accuracy", level=1.0), "level 1.0, expected"),
        (lambda p, y: bootstrap(p, y, "accuracy", resamples=1), "1 resamples"),
        (lambda p, y: bootstrap(p, y[:-1], "accuracy"), "expected 120 integer labels"),
        (lambda p, y: paired_bootstrap(p, p[:-1], y, "accuracy"), "expected one shape"),
        (lambda p, y: over_seeds([0.5]), "2 or more scores, found 1"),
    ],
)
def test_refuses_what_makes_no_interval(call, words):
    probabilities, labels = scored("accuracy")
    with pytest.raises(DataError, match=words):
        call(probabilities, labels)
