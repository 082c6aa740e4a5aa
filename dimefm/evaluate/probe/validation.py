"""Validation images of the clean protocols, and the choice by them. Test images have no part in it.

Validation is the dataset's own split where there is one. Otherwise, and always for few-shot, it is
20 % of each class of the training images, drawn by the seed; the chosen settings are then trained
again with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.errors import DataError
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe.data import Features
from dimefm.evaluate.probe.sampling import split_train_val

LEAST_PROBABILITY = 1e-12
"""Probabilities are at least this large when their logarithm is taken."""

OWN_SPLIT = "val split of the dataset"
CUT = "20 % of each class of the training images"


@dataclass(frozen=True)
class Parts:
    """What settings are tried on (``fit``), scored on (``val``), and trained on in the end.

    ``fit_places``, ``val_places`` and ``final_places`` int64 are their places among the training
    images. ``val_places`` is None where ``val`` is the dataset's own split.
    """

    fit: Features
    val: Features
    final: Features
    fit_places: np.ndarray
    val_places: np.ndarray | None
    final_places: np.ndarray

    @property
    def source(self) -> str:
        """Where ``val`` comes from."""
        return OWN_SPLIT if self.val_places is None else CUT


def parts(train: Features, validation: Features | None, shots: int | None, seed: int) -> Parts:
    """Return the parts of a dataset's training images and of its ``validation`` split, if any.

    With one shot, the second image of each class is for validation alone. Raises DataError when no
    class has an image to spare.
    """
    every_place = np.arange(len(train))
    if validation is not None and shots is None and len(validation):
        return Parts(train, validation, train, every_place, None, every_place)
    fit_places, val_places = split_places(train.labels, seed)
    fit = train.take(fit_places)
    val = train.take(val_places)
    if shots == 1:
        return Parts(fit, val, fit, fit_places, val_places, fit_places)
    return Parts(fit, val, train, fit_places, val_places, every_place)


def split_places(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places int64 of the images to train on, and of 20 % of each class to validate on.

    Labels are int [n], or 0/1 [n, C]. ``seed`` draws the images; every class keeps an image to
    train on. Raises DataError when that leaves none to validate on.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    _, chosen = split_train_val(labels[order])
    is_val = np.zeros(len(labels), dtype=bool)
    is_val[order[chosen]] = True
    has_class = labels.astype(bool) if labels.ndim == 2 else _one_hot(labels)
    for class_images in has_class.T:
        if class_images.any() and not (class_images & ~is_val).any():
            is_val[np.flatnonzero(class_images)[0]] = False
    if not is_val.any():
        raise DataError(
            f"probe: {len(labels)} training images leave none to validate on: no class has two."
            " Fix: add training images, or use --protocol elevater"
        )
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def _one_hot(labels: np.ndarray) -> np.ndarray:
    return labels[:, None] == np.unique(labels)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy of probabilities [n, C]; for 0/1 labels [n, C] that of every
    class by itself.
    """
    if labels.ndim == 1:
        of_label = probabilities[np.arange(len(labels)), labels]
    else:
        of_label = np.where(labels == 1, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(of_label, LEAST_PROBABILITY)).mean())


@dataclass(frozen=True)
class Candidate:
    """Settings by their number, and the epoch, with their score and loss on validation."""

    number: int
    epoch: int
    score: float
    loss: float


def candidate(
    number: int, epoch: int, probabilities: np.ndarray, labels: np.ndarray, metric: str
) -> Candidate:
    """Return settings with their scores on validation labels."""
    score = METRICS[metric](probabilities, labels)
    return Candidate(number, epoch, score, log_loss(probabilities, labels))


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Return the highest score; of equal ones the lowest loss, and then the first.

    A few validation images give many equal scores.
    """
    return max(candidates, key=lambda one: (one.score, -one.loss))
