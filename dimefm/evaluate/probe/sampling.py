"""Which images a probe trains on: k-shot subsets, and the split into training and validation.

Both are those of the ELEVATER toolkit, image by image. Labels are int [n], or 0/1 [n, C] where an
image may have several classes.

Source: vision-datasets 0.2.17, ``DatasetManifest.sample_few_shot_subset``, and Elevater_Toolkit_IC
``evaluation/feature.py:137-166``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np

from dimefm.errors import DataError

VALIDATION_SHARE = 0.2


def sample_few_shot_subset(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the places int64 [m] of a k-shot subset, in the order in which they are taken.

    Images are shuffled by ``seed`` and taken while their class has less than ``shots`` images. An
    image with several classes is taken unless all its classes are full, and as long as the rarest
    has at most ``shots / 2`` or the most frequent at most ``1.5 shots`` images. A class with fewer
    images gives all of them. Raises DataError when ``shots`` is less than 1, or there are no
    images.
    """
    labels = _checked(labels)
    if shots < 1:
        raise DataError(f"few-shot: {shots} images per class, expected 1 or more. Fix: raise it")
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    if labels.ndim == 2:
        taken = _several_labels(labels, shots, order)
    else:
        taken = _one_label(labels, shots, order)
    return np.array(list(taken), dtype=np.int64)


def _one_label(labels: np.ndarray, shots: int, order: list[int]) -> Iterator[int]:
    """Yield the places that are taken when every image has one class."""
    counts = np.zeros(labels.max() + 1, dtype=np.int64)
    for place in order:
        label = labels[place]
        if counts[label] < shots:
            counts[label] += 1
            yield place


def _several_labels(labels: np.ndarray, shots: int, order: list[int]) -> Iterator[int]:
    """Yield the places that are taken when an image may have several classes."""
    counts = np.zeros(labels.shape[1], dtype=np.int64)
    for place in order:
        if counts.min() >= shots:
            return
        classes = np.flatnonzero(labels[place])
        if not len(classes):
            continue
        counts_of_image = counts[classes]
        if counts_of_image.min() >= shots:
            continue
        is_rare = counts_of_image.min() <= shots / 2
        if is_rare or counts_of_image.max() <= 1.5 * shots:
            counts[classes] += 1
            yield place


def split_train_val(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places int64 of the training and of the validation images, both in order.

    The first ceil(20 %) images of each class are for validation; nothing is shuffled. With several
    labels per image, the first image of the lowest class that is still short is taken again and
    again, and counts for all its classes. Raises DataError when there are no images.
    """
    labels = _checked(labels)
    if labels.ndim == 2:
        is_validation = _validation_of_several_labels(labels)
    else:
        is_validation = _validation_of_one_label(labels)
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def _validation_of_one_label(labels: np.ndarray) -> np.ndarray:
    is_validation = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        wanted = math.ceil(VALIDATION_SHARE * len(places))
        is_validation[places[:wanted]] = True
    return is_validation


def _validation_of_several_labels(labels: np.ndarray) -> np.ndarray:
    is_validation = np.zeros(len(labels), dtype=bool)
    wanted = np.ceil(VALIDATION_SHARE * labels.sum(axis=0)).astype(np.int64)
    for label in range(labels.shape[1]):
        for place in np.flatnonzero(labels[:, label]):
            if wanted[label] <= 0:
                break
            if not is_validation[place]:
                is_validation[place] = True
                wanted -= labels[place]
    return is_validation


def _checked(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or not len(labels):
        raise DataError(
            f"probe: expected labels [n] or [n, C] of training images, found shape {labels.shape}."
            " Fix: add training images"
        )
    return labels
