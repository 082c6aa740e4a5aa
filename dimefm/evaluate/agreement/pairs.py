"""One dataset scored by two models: the same images, classes and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data import Rows
from dimefm.errors import DataError
from dimefm.evaluate.classifier import probabilities
from dimefm.evaluate.datasets.layouts import Dataset
from dimefm.evaluate.features import image_features, prompt_weights
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder

SCALE = 100.0
"""Factor of the cosines of both models before the softmax: a temperature of 0.01."""


@dataclass(frozen=True)
class Side:
    """One model on a dataset: embeddings of images [n, D] and classes [C, D], of unit length."""

    images: np.ndarray
    classes: np.ndarray

    def logits(self) -> np.ndarray:
        """Return 100 times the cosines of images and classes, float32 [n, C]."""
        return SCALE * (self.images @ self.classes.T)

    def probabilities(self) -> np.ndarray:
        """Return the softmax of the logits, float32 [n, C]."""
        return probabilities(self.images, self.classes, SCALE)


@dataclass(frozen=True)
class Pair:
    """Two models on the images that both can read.

    ``labels`` int [n] or 0/1 [n, C] are those of these images, ``unreadable`` counts the others.
    ``numbers`` int64 [n] are the places of these images among ``rows``, the rows of the test split.
    """

    student: Side
    teacher: Side
    labels: np.ndarray
    unreadable: int
    rows: Rows
    numbers: np.ndarray


def encode_pair(
    student: Encoder, teacher: Encoder, dataset: Dataset, store: Path, settings: Settings
) -> Pair:
    """Encode the test images and class prompts of a dataset with both models.

    Embeddings are kept in, and taken from, the folder ``store``. Raises DataError when no image can
    be read by both.
    """
    benchmark = dataset.benchmark
    rows, labels, _ = dataset.rows("test")
    student_images, student_numbers = image_features(student, benchmark, rows, store, settings)
    teacher_images, teacher_numbers = image_features(teacher, benchmark, rows, store, settings)
    numbers, student_places, teacher_places = np.intersect1d(
        student_numbers, teacher_numbers, assume_unique=True, return_indices=True
    )
    if not len(numbers):
        raise DataError(
            f"{dataset.folder}: no image of {len(rows)} can be used by both models. Fix: fetch the"
            " dataset again"
        )
    return Pair(
        student=Side(
            np.asarray(student_images)[student_places],
            prompt_weights(student, benchmark, store, settings),
        ),
        teacher=Side(
            np.asarray(teacher_images)[teacher_places],
            prompt_weights(teacher, benchmark, store, settings),
        ),
        labels=labels[numbers],
        unreadable=len(rows) - len(numbers),
        rows=rows,
        numbers=numbers,
    )
