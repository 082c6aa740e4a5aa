"""The four metrics of ELEVATER: pure functions of scores and labels, numpy only, all in 0..1.

Shapes: ``scores`` [n, C] (any monotone score; ELEVATER gives softmax probabilities), ``labels`` int
[n], or 0/1 [n, C] where a row may have several classes. Values equal vision-evaluation 0.2.9 as
called by Elevater_Toolkit_IC (``vision_benchmark/evaluation/metric.py``), which computes them with
scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dimefm.errors import DataError

RECALLS = np.linspace(1, 0, 11)

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Computes one number, 0 to 1, from scores and labels."""


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows whose highest score is at their label.

    Of equal scores the first counts. Raises DataError when the shapes do not fit, there are no
    rows, or a score is not finite.
    """
    scores, labels = _one_label(scores, labels)
    predicted = scores.argmax(axis=1)
    right = predicted == labels
    return float(np.mean(right))


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of each class that has rows, averaged over these classes.

    Classes without a row are dropped: their columns are removed before the highest score is looked
    up, as ``evaluators.py:133-139`` does. On a set that lacks classes the value is therefore higher
    than the usual balanced accuracy. Raises DataError as :func:`accuracy`.
    """
    scores, labels = _one_label(scores, labels)
    present, class_of_row, images = np.unique(labels, return_inverse=True, return_counts=True)
    scores = scores[:, present]
    predicted = scores.argmax(axis=1)
    is_right = predicted == class_of_row
    right = np.bincount(class_of_row[is_right], minlength=len(present))
    return float(np.mean(right / images))


def map_11_point(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the 11-point interpolated mean average precision over classes.

    ``labels`` is 0/1 [n, C]. For each class: the best precision at a recall of at least 1.0, 0.9 ..
    0.0, averaged. The curve ends at recall 0 with precision 1, so a class scores at least 1/11, and
    exactly that when it has no positive row. Raises DataError as :func:`accuracy`, or when labels
    are not 0/1 [n, C].
    """
    return float(np.mean(average_precisions(scores, labels)))


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the 11-point average precision of each class, float64 [C], see
    :func:`map_11_point`.
    """
    scores = _finite(scores)
    labels = np.asarray(labels)
    if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"map_11_point: expected 0/1 labels of shape {scores.shape}, found shape {labels.shape}"
        )
    precisions = []
    for class_scores, class_labels in zip(scores.T, labels.T, strict=True):
        positive = class_labels == 1
        precisions.append(_average_precision(class_scores, positive))
    return np.array(precisions)


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve of column 1 of two.

    That is the chance that a positive row outscores a negative one; equal scores count one half.
    Raises DataError as :func:`accuracy`, unless C = 2, or when only one class has rows.
    """
    scores, labels = _one_label(scores, labels)
    n_classes = scores.shape[1]
    positives = int(labels.sum()) if n_classes == 2 else 0
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        present = len(np.unique(labels))
        raise DataError(
            f"roc_auc: expected two classes with rows in both, found {n_classes} classes, of which"
            f" {present} have rows. Fix: score this set with accuracy"
        )
    ranks = _mean_ranks(scores[:, 1])
    rank_sum = ranks[labels == 1].sum()
    least_sum = positives * (positives + 1) / 2
    wins = rank_sum - least_sum
    return float(wins / (positives * negatives))


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, counted from 1; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(count)
    mean_rank = last_rank - (count - 1) / 2
    return mean_rank[place]


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "mean_per_class": mean_per_class,
    "map_11_point": map_11_point,
    "roc_auc": roc_auc,
}


def with_unreadable_as_wrong(
    metric: str, scores: np.ndarray, labels: np.ndarray, readable: np.ndarray
) -> float | None:
    """Return accuracy or mean per class with unreadable images as wrong answers, else None.

    ``scores`` [n, C] are of the images ``readable`` int [n] among all N; ``labels`` int [N] are of
    all. The other metrics rank images, and an image without a score has no rank. As in
    :func:`mean_per_class`, the columns of classes without any image are dropped.
    """
    if metric == "accuracy":
        return accuracy(scores, labels[readable]) * len(readable) / len(labels)
    if metric != "mean_per_class":
        return None
    present, class_of_row, images = np.unique(labels, return_inverse=True, return_counts=True)
    class_of_row = class_of_row[readable]
    predicted = scores[:, present].argmax(axis=1)
    is_right = predicted == class_of_row
    right = np.bincount(class_of_row[is_right], minlength=len(present))
    return float(np.mean(right / images))


def chance(metric: str, n_classes: int, labels: np.ndarray | None = None) -> float | None:
    """Return what random scores reach on average, or None when that is unknown.

    accuracy 1/C; mean_per_class 1/(classes with rows, or C without labels); roc_auc 1/2;
    map_11_point the mean share of positives, which large sets approach from above (needs ``labels``
    [n, C]).
    """
    if metric == "accuracy":
        return 1 / n_classes
    if metric == "mean_per_class":
        if labels is None:
            return 1 / n_classes
        return 1 / len(np.unique(labels))
    if metric == "roc_auc":
        return 0.5
    if metric == "map_11_point" and labels is not None:
        return float(np.mean(labels))
    return None


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the 11-point average precision of one class; scores [n], positive bool [n]."""
    positives = int(positive.sum())
    if positives == 0:
        return 1 / len(RECALLS)
    order = np.argsort(-scores, kind="stable")
    changes = np.flatnonzero(np.diff(scores[order]))
    last_of_equal = np.append(changes, len(scores) - 1)
    hits = np.cumsum(positive[order])
    hits = hits[last_of_equal]
    retrieved = last_of_equal + 1
    precision = np.append(hits / retrieved, 1.0)
    recall = np.append(hits / positives, 0.0)
    best_precisions = []
    for least_recall in RECALLS:
        reached = precision[recall >= least_recall]
        best_precisions.append(reached.max())
    return float(np.mean(best_precisions))


def _finite(scores: np.ndarray) -> np.ndarray:
    """Return the scores as an array [n, C]; raise DataError unless it has rows and is finite."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise DataError(
            f"metric: expected scores of shape [n, C] with rows, found shape {scores.shape}"
        )
    finite_rows = np.isfinite(scores).all(axis=1)
    if not finite_rows.all():
        row = int(np.flatnonzero(~finite_rows)[0])
        raise DataError(
            f"metric: scores of row {row} are not finite. Fix: look for zero or NaN embeddings in"
            " the features"
        )
    return scores


def _one_label(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [n, C] and labels int [n] as arrays; raise DataError when they do not fit."""
    scores = _finite(scores)
    labels = np.asarray(labels)
    n_rows, n_classes = scores.shape
    are_integers = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (n_rows,) or not are_integers:
        raise DataError(
            f"metric: expected {n_rows} integer labels, found {labels.dtype} of shape"
            f" {labels.shape}"
        )
    lowest = labels.min()
    highest = labels.max()
    if lowest < 0 or highest >= n_classes:
        raise DataError(
            f"metric: labels run from {lowest} to {highest}, expected 0 to {n_classes - 1} for"
            f" {n_classes} classes"
        )
    return scores, labels
