"""Effective robustness: how far a score lies above the line that ImageNet-trained models follow.

On each variant of ImageNet the accuracy of ordinary models is a nearly linear function of their
accuracy on ImageNet-1k, when both are put on a logit scale. The points that the line is fitted to
are in ``baseline.csv``, with their source.

Source: Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts in Image
Classification", section 3; Miller et al. 2021, "Accuracy on the Line".
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

IMAGENET = "imagenet-1k"
VARIANTS = ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet")
MEAN = "mean"
"""Stands for the mean over all five variants, like the name of one."""

BASELINE = Path(__file__).with_name("baseline.csv")
LEAST = 1e-4
"""Least distance of an accuracy from 0 and 1 on the logit scale."""


@dataclass(frozen=True)
class Line:
    """The line that ordinary models follow on one variant, and the points that it was fitted to.

    ``x`` [n] and ``y`` [n] are accuracies, 0 to 1, on ImageNet-1k and on the variant, ``models``
    [n] the names. On the logit scale, y is ``slope`` times x plus ``intercept``; ``r2`` is the
    share of the variance that this explains.
    """

    models: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    slope: float
    intercept: float
    r2: float

    def at(self, accuracy: float | np.ndarray) -> np.ndarray:
        """Return the accuracy on the variant, 0 to 1, that is expected of one on ImageNet-1k."""
        return expit(self.slope * logits(accuracy) + self.intercept)

    def covers(self, accuracy: float) -> bool:
        """Tell whether an accuracy on ImageNet-1k lies between those of the points."""
        return bool(self.x.min() <= accuracy <= self.x.max())


@dataclass(frozen=True)
class Robustness:
    """Where a model stands on one variant.

    ``imagenet`` is its accuracy on ImageNet-1k, among the classes of the variant, ``accuracy`` that
    on the variant, and ``expected`` what the line says; all 0 to 1. ``is_extrapolated`` says that
    no point of the line is as weak, or as strong, on ImageNet-1k.
    """

    imagenet: float
    accuracy: float
    expected: float
    is_extrapolated: bool

    @property
    def effective(self) -> float:
        """Effective robustness: the accuracy less the expected one, -1 to 1."""
        return self.accuracy - self.expected

    def to_json(self) -> dict:
        """Return plain values for JSON."""
        return {
            "effective_robustness": self.effective,
            "imagenet": self.imagenet,
            "expected": self.expected,
            "extrapolated": self.is_extrapolated,
        }


def logits(accuracy: float | np.ndarray) -> np.ndarray:
    """Return accuracies, 0 to 1, on the logit scale."""
    return logit(np.clip(accuracy, LEAST, 1 - LEAST))


@functools.cache
def baseline(variant: str) -> Line:
    """Return the line of a variant, or that of ``MEAN``.

    ImageNet-V2 and -Sketch have all 1000 classes, so x is the accuracy on ImageNet-1k; for the
    others it is the accuracy on the validation images of their classes, among these classes. For
    ``MEAN`` y is the mean over the five variants, and x the accuracy on ImageNet-1k.
    """
    rows = _rows()
    y = np.mean([_column(rows, name) for name in VARIANTS], axis=0)
    x = _column(rows, IMAGENET)
    if variant != MEAN:
        y = _column(rows, variant)
        of_classes = f"{IMAGENET} in {variant}"
        if of_classes in rows[0]:
            x = _column(rows, of_classes)
    slope, intercept = np.polyfit(logits(x), logits(y), 1)
    r2 = np.corrcoef(logits(x), logits(y))[0, 1] ** 2
    models = tuple(row["model"] for row in rows)
    return Line(models, x, y, float(slope), float(intercept), float(r2))


def robustness(variant: str, imagenet: float, accuracy: float) -> Robustness:
    """Return where a model stands on a variant, or on ``MEAN``; accuracies are 0 to 1."""
    line = baseline(variant)
    return Robustness(
        imagenet=imagenet,
        accuracy=accuracy,
        expected=float(line.at(imagenet)),
        is_extrapolated=not line.covers(imagenet),
    )


@functools.cache
def _rows() -> list[dict[str, str]]:
    with BASELINE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """Return the accuracies, 0 to 1, in one column."""
    return np.array([float(row[name]) for row in rows]) / 100
