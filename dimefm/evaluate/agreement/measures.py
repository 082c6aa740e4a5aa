"""How much two models agree: pure functions of embeddings, logits and labels, with numpy.

Rows of both arguments are those of the same images. Arguments come in the order (student, teacher).
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from dimefm.errors import DataError
from dimefm.runtime.vectors import unit_rows

BINS = 15
"""Bins of the confidence, as in Guo et al. 2017."""

TINY = float(np.finfo(np.float64).tiny)
NUMBERS_AT_ONCE = 1 << 22
"""Numbers of a block of images times classes: memory does not grow with the images."""


def cosines(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of [n, D] with the same row of the other, float64 [n].

    It says something only when both live in one space. Raises DataError for other shapes.
    """
    if student.shape != teacher.shape:
        raise DataError(
            f"agreement: embeddings {student.shape} and {teacher.shape}, expected one shape. Fix:"
            " compare models of one space, or by CKA"
        )
    first = unit_rows(student.astype(np.float64), eps=TINY)
    second = unit_rows(teacher.astype(np.float64), eps=TINY)
    return np.einsum("nd,nd->n", first, second)


def linear_cka(student: np.ndarray, teacher: np.ndarray) -> float | None:
    """Return the linear centered kernel alignment of [n, D] and [n, E], 0 to 1.

    1 means equal up to a rotation and a scale. With fewer rows than dimensions it is too high, for
    any two models. None when all rows of one are equal.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited".
    """
    first = _centered(student)
    second = _centered(teacher)
    length = np.linalg.norm(first.T @ first)
    other_length = np.linalg.norm(second.T @ second)
    if length * other_length <= TINY:
        return None
    shared = np.linalg.norm(first.T @ second)
    alignment = shared**2 / (length * other_length)
    return float(min(1.0, alignment))


def _centered(rows: np.ndarray) -> np.ndarray:
    """Return the rows less their mean, float64 [n, D]."""
    rows = rows.astype(np.float64)
    return rows - rows.mean(axis=0)


def top1_agreement(student: np.ndarray, teacher: np.ndarray) -> float:
    """Return the share of images for which both have the same class first; scores are [n, C]."""
    first = student.argmax(axis=1)
    second = teacher.argmax(axis=1)
    return float(np.mean(first == second))


def rank_correlations(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of the class scores of each image, -1 to 1: float64 [n].

    Scores are [n, C]; equal scores share the mean of their ranks. NaN where all classes of an image
    have the same score.
    """
    blocks = []
    for rows in _row_blocks(student):
        first = _centered_ranks(student[rows])
        second = _centered_ranks(teacher[rows])
        products = np.einsum("nc,nc->n", first, second)
        lengths = np.linalg.norm(first, axis=1)
        lengths *= np.linalg.norm(second, axis=1)
        correlations = np.full(len(products), np.nan)
        np.divide(products, lengths, out=correlations, where=lengths > 0)
        blocks.append(correlations)
    return np.concatenate(blocks)


def _centered_ranks(scores: np.ndarray) -> np.ndarray:
    """Return the ranks of the scores of each row less their mean, float64 [n, C]."""
    ranks = rankdata(scores, axis=1)
    middle = (scores.shape[1] + 1) / 2
    return ranks - middle


def kl_divergences(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Return KL(teacher || student) of the softmax of the logits [n, C] in nats: float64 [n]."""
    blocks = []
    for rows in _row_blocks(student):
        log_student = _log_softmax(student[rows])
        log_teacher = _log_softmax(teacher[rows])
        terms = np.exp(log_teacher) * (log_teacher - log_student)
        blocks.append(np.maximum(terms.sum(axis=1), 0.0))  # sums round below 0
    return np.concatenate(blocks)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error, 0 to 1, of probabilities [n, C] and labels int [n].

    The confidence is the highest probability. Images are put into ``bins`` of equal width, each
    with its upper end; the gaps between mean confidence and accuracy are averaged by images.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    predicted = probabilities.argmax(axis=1)
    is_right = predicted == labels
    places = np.ceil(confidence * bins).astype(np.int64) - 1
    places = np.clip(places, 0, bins - 1)
    confidence_sums = np.bincount(places, weights=confidence, minlength=bins)
    right_sums = np.bincount(places, weights=is_right.astype(np.float64), minlength=bins)
    gaps = np.abs(confidence_sums - right_sums)
    return float(gaps.sum() / len(labels))


def _row_blocks(scores: np.ndarray) -> list[slice]:
    """Return slices of rows of scores [n, C] that are computed at once."""
    n_rows, n_classes = scores.shape
    at_once = max(1, NUMBERS_AT_ONCE // n_classes)
    blocks = []
    for start in range(0, n_rows, at_once):
        blocks.append(slice(start, start + at_once))
    return blocks


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)
