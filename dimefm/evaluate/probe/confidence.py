"""How certain a score is: bootstrap over test images, and the spread over seeds.

A resample draws as many test images as there are, with replacement. The resamples of one seed and
number of images are always the same, so two models can be compared on the same ones.

In a resample, ``mean_per_class`` is over the classes that the resample has. A class that it lacks
stays among the answers that a model may give, as the model gave them on the whole test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.metrics import METRICS, RECALLS

LEVEL = 0.95
RESAMPLES = 1000
COUNTS_AT_ONCE = 4 << 20
"""Numbers that are held at once: resamples times images."""

ScoreResamples = Callable[[np.ndarray], np.ndarray]
"""Returns the metric float64 [b] of resamples, given how often each image is drawn: int [b, n]."""


@dataclass(frozen=True)
class Interval:
    """A score, 0 to 1, and the interval in which it lies with a probability of ``level``.

    ``over`` says what varies: ``"test images"`` or ``"seeds"``. ``deviation`` is the standard
    deviation of the score over resamples or seeds.
    """

    value: float
    low: float
    high: float
    deviation: float
    level: float
    over: str
    count: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """The scores of two models on the same images, and the difference of the first to the second.

    ``low`` to ``high`` holds the true difference with a probability of ``level``. ``p_value`` is
    two-sided: how often resamples disagree with the sign of the difference, doubled.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    level: float
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bootstrap(
    probabilities: np.ndarray,
    labels: np.ndarray,
    metric: str,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return a metric of probabilities [n, C] and its percentile interval over test images.

    ``metric`` is a name in METRICS, labels are as it takes them. Raises DataError when they do not
    fit the metric, or ``resamples`` or ``level`` make no interval.
    """
    value = _value(probabilities, labels, metric)
    _check(resamples, level)
    scores_of = _SCORERS[metric](np.asarray(probabilities), np.asarray(labels))
    scores = np.concatenate(
        [scores_of(counts) for counts in resample_counts(len(labels), resamples, seed)]
    )
    scores = _defined(scores, metric)
    low, high = _percentiles(scores, level)
    deviation = float(np.std(scores, ddof=1))
    return Interval(value, low, high, deviation, level, "test images", len(scores))


def paired_bootstrap(
    probabilities_a: np.ndarray,
    probabilities_b: np.ndarray,
    labels: np.ndarray,
    metric: str,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same test images: a metric of both, and the interval of a - b.

    ``probabilities_a`` and ``probabilities_b`` are [n, C], in the order of ``labels``. Each
    resample takes the same images for both models, so what is hard for both does not blur their
    difference. Raises DataError as :func:`bootstrap`, and when the two have other shapes.
    """
    if np.shape(probabilities_a) != np.shape(probabilities_b):
        raise DataError(
            f"paired bootstrap: scores have shapes {np.shape(probabilities_a)} and"
            f" {np.shape(probabilities_b)}, expected one shape. Fix: score both models on the same"
            " images and classes"
        )
    first = _value(probabilities_a, labels, metric)
    second = _value(probabilities_b, labels, metric)
    _check(resamples, level)
    labels = np.asarray(labels)
    scores_of_a = _SCORERS[metric](np.asarray(probabilities_a), labels)
    scores_of_b = _SCORERS[metric](np.asarray(probabilities_b), labels)
    differences = []
    for counts in resample_counts(len(labels), resamples, seed):
        differences.append(scores_of_a(counts) - scores_of_b(counts))
    gaps = _defined(np.concatenate(differences), metric)
    low, high = _percentiles(gaps, level)
    smaller_tail = min(np.mean(gaps <= 0), np.mean(gaps >= 0))
    p_value = min(1.0, 2 * max(float(smaller_tail), 1 / len(gaps)))
    return Comparison(first, second, first - second, low, high, p_value, level, len(gaps))


def over_seeds(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Return the mean of the scores of several seeds, and Student's t interval of the mean.

    ``deviation`` is the standard deviation of one score, with n - 1. The interval is cut to 0 to 1.
    Raises DataError with less than two scores.
    """
    if len(values) < 2:
        raise DataError(
            f"an interval over seeds needs 2 or more scores, found {len(values)}. Fix: add seeds"
        )
    _check(RESAMPLES, level)
    n_seeds = len(values)
    mean = float(np.mean(values))
    deviation = float(np.std(values, ddof=1))
    quantile = float(stdtrit(n_seeds - 1, (1 + level) / 2))
    half = quantile * deviation / n_seeds**0.5
    low = max(0.0, mean - half)
    high = min(1.0, mean + half)
    return Interval(mean, low, high, deviation, level, "seeds", n_seeds)


def resample_counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks int64 [b, n]: how often each of n images is drawn in each resample."""
    generator = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // n)
    for first in range(0, resamples, at_once):
        n_block = min(at_once, resamples - first)
        drawn = generator.integers(n, size=(n_block, n))
        drawn += n * np.arange(n_block)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n_block * n)
        yield counts.reshape(n_block, n)


def _value(probabilities: np.ndarray, labels: np.ndarray, metric: str) -> float:
    """Return the metric of all images; it checks shapes and labels."""
    if metric not in METRICS:
        raise DataError(f"unknown metric '{metric}': {did_you_mean(metric, METRICS)}")
    return METRICS[metric](probabilities, labels)


def _check(resamples: int, level: float) -> None:
    if resamples < 2 or not 0 < level < 1:
        raise DataError(
            f"bootstrap: {resamples} resamples at the level {level}, expected 2 or more resamples,"
            " and a level between 0 and 1. Fix: pass other values"
        )


def _percentiles(scores: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return float(low), float(high)


def _defined(scores: np.ndarray, metric: str) -> np.ndarray:
    """Return the scores of the resamples that have one: ROC AUC needs images of both classes."""
    scores = scores[np.isfinite(scores)]
    if len(scores) < 2:
        raise DataError(
            f"bootstrap: no resample has a value of {metric}: too few images of a class. Fix: use a"
            " larger test set, or another metric"
        )
    return scores


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> ScoreResamples:
    is_right = (scores.argmax(axis=1) == labels).astype(np.float64)
    return lambda counts: counts @ is_right / len(labels)


def _mean_per_class(scores: np.ndarray, labels: np.ndarray) -> ScoreResamples:
    present, class_of_image = np.unique(labels, return_inverse=True)
    is_right = scores[:, present].argmax(axis=1) == class_of_image
    order = np.argsort(class_of_image, kind="stable")
    first_of_class = np.searchsorted(class_of_image[order], np.arange(len(present)))
    right_in_order = is_right[order]

    def score(counts: np.ndarray) -> np.ndarray:
        in_order = counts[:, order]
        drawn = np.add.reduceat(in_order, first_of_class, axis=1)
        right = np.add.reduceat(in_order * right_in_order, first_of_class, axis=1)
        is_drawn = drawn > 0
        shares = np.divide(right, drawn, out=np.zeros(drawn.shape), where=is_drawn)
        return shares.sum(axis=1) / is_drawn.sum(axis=1)

    return score


def _roc_auc(scores: np.ndarray, labels: np.ndarray) -> ScoreResamples:
    """Score resamples by pairs won: equal scores are one group, whose pairs count one half."""
    of_positive = scores[:, 1]
    order = np.argsort(of_positive, kind="stable")
    is_new = np.diff(of_positive[order], prepend=-np.inf) > 0
    first_of_group = np.flatnonzero(is_new)
    positive_in_order = labels[order] == 1

    def score(counts: np.ndarray) -> np.ndarray:
        in_order = counts[:, order]
        positives = np.add.reduceat(in_order * positive_in_order, first_of_group, axis=1)
        negatives = np.add.reduceat(in_order * ~positive_in_order, first_of_group, axis=1)
        lower_negatives = np.cumsum(negatives, axis=1) - negatives
        wins = (positives * (lower_negatives + negatives / 2)).sum(axis=1)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        return np.divide(wins, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    return score


def _map_11_point(scores: np.ndarray, labels: np.ndarray) -> ScoreResamples:
    curves = []
    for class_scores, class_labels in zip(scores.T, labels.T, strict=True):
        curves.append(_PrecisionCurve(class_scores, class_labels == 1))

    def score(counts: np.ndarray) -> np.ndarray:
        total = np.zeros(len(counts))
        for curve in curves:
            total += curve.average_precisions(counts)
        return total / len(curves)

    return score


class _PrecisionCurve:
    """The 11-point average precision of one class in many resamples."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        self.order = np.argsort(-scores, kind="stable")
        is_last = np.append(np.diff(scores[self.order]) != 0, True)
        self.last_of_equal = np.flatnonzero(is_last)
        self.positive = positive[self.order]

    def average_precisions(self, counts: np.ndarray) -> np.ndarray:
        """Return the average precision float64 [b] for counts [b, n]."""
        in_order = counts[:, self.order]
        hits = np.cumsum(in_order * self.positive, axis=1)[:, self.last_of_equal]
        retrieved = np.cumsum(in_order, axis=1)[:, self.last_of_equal]
        positives = hits[:, -1]
        precision = hits / np.maximum(retrieved, 1)
        reversed_best = np.maximum.accumulate(precision[:, ::-1], axis=1)
        best = reversed_best[:, ::-1]
        recall = hits / np.maximum(positives, 1)[:, None]
        total = np.ones(len(counts))  # at recall 0 the precision is 1
        for least_recall in RECALLS[RECALLS > 0]:
            place = (recall < least_recall).sum(axis=1)
            inside = np.minimum(place, recall.shape[1] - 1)
            total += np.where(positives > 0, best[np.arange(len(counts)), inside], 0.0)
        return total / len(RECALLS)


_SCORERS: dict[str, Callable[[np.ndarray, np.ndarray], ScoreResamples]] = {
    "accuracy": _accuracy,
    "mean_per_class": _mean_per_class,
    "roc_auc": _roc_auc,
    "map_11_point": _map_11_point,
}
