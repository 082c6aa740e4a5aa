"""Metrics of clip-benchmark and DataComp: pure functions of scores and labels, all 0 to 1.

Sources: clip_benchmark 1.6.2, metrics/zeroshot_classification.py; DataComp, eval_utils/wds_eval.py,
wilds_eval.py and fairness_eval.py; WILDS, common/metrics/all_metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.metrics import f1_score

NO_CLASS = -1
"""Answer for an image that could not be read."""


@dataclass(frozen=True)
class Answers:
    """What a model answers for n images, and what is right.

    ``ranks`` int [n] say how many classes score higher than the right one; of equal scores the
    class with the lower number is higher. ``predicted`` int [n] are the classes with the highest
    score, ``labels`` int [n] the right ones. ``groups`` int [n] are the groups of the images, such
    as regions.
    """

    ranks: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None


def answers_of(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Answers:
    """Return the answers that logits [n, C] give, see :class:`Answers`."""
    rows = np.arange(len(labels))
    right = logits[rows, labels][:, None]
    numbers = np.arange(logits.shape[1])
    is_before = numbers[None] < labels[:, None]
    ranks = (logits > right).sum(axis=1)
    ranks += ((logits == right) & is_before).sum(axis=1)
    return Answers(ranks, logits.argmax(axis=1), labels, groups)


def with_unreadable(
    answers: Answers, readable: np.ndarray, labels: np.ndarray, groups: np.ndarray | None
) -> Answers:
    """Return the answers for all N images: those that are not ``readable`` [n] are wrong."""
    ranks = np.full(len(labels), np.iinfo(np.int64).max)
    ranks[readable] = answers.ranks
    predicted = np.full(len(labels), NO_CLASS)
    predicted[readable] = answers.predicted
    return Answers(ranks, predicted, labels, groups)


def top_k(answers: Answers, k: int) -> float:
    """Return the share of images whose right class is among the ``k`` best."""
    return float(np.mean(answers.ranks < k))


def mean_per_class_recall(answers: Answers) -> float:
    """Return the mean, over the classes that have images, of the share that is right.

    Classes without an image stay possible answers. This is scikit-learn's balanced accuracy.
    """
    return float(np.mean(_shares(answers.ranks < 1, answers.labels)))


def worst_group(answers: Answers, k: int = 1) -> float:
    """Return the lowest top-k accuracy of a group that has images."""
    assert answers.groups is not None
    return float(np.min(_shares(answers.ranks < k, answers.groups)))


def macro_f1(answers: Answers) -> float:
    """Return the mean F1 over the classes that have images, as WILDS does."""
    value = f1_score(
        answers.labels,
        answers.predicted,
        average="macro",
        labels=np.unique(answers.labels),
        zero_division=0,
    )
    return float(value)


def mean_average_precision(logits: np.ndarray, marks: np.ndarray) -> float:
    """Return the mean over all C classes of the average precision; logits and 0/1 marks [n, C].

    The average precision of a class is the mean of the precisions at its images, in the order of
    their logits. A class without an image has 0 and counts.
    """
    places = np.arange(1, len(logits) + 1)
    values = []
    for class_logits, class_marks in zip(logits.T, marks.T, strict=True):
        order = np.argsort(-class_logits, kind="stable")
        is_right = class_marks[order] == 1
        precisions = np.cumsum(is_right) / places
        n_right = max(1, int(is_right.sum()))
        values.append(precisions[is_right].sum() / n_right)
    return float(np.mean(values))


def _shares(is_right: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the share that is right of each group, sorted by the numbers of the groups."""
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    right = np.bincount(place, weights=is_right, minlength=len(counts))
    return right / counts


ACC1 = "acc1"
ACC5 = "acc5"
MEAN_PER_CLASS = "mean_per_class_recall"
MEAN_AP = "mean_average_precision"

METRICS: Mapping[str, Callable[[Answers], float]] = {
    ACC1: partial(top_k, k=1),
    ACC5: partial(top_k, k=5),
    MEAN_PER_CLASS: mean_per_class_recall,
    "acc_wg": worst_group,
    "acc_worst_region": worst_group,
    "acc_top5_wg": partial(worst_group, k=5),
    "F1-macro_all": macro_f1,
}
"""Metrics of images with one label each, by their names in clip-benchmark and DataComp."""
