"""The part "logistic" of ``benchmarks.probe``: a path of strengths, beside scikit-learn.

The embeddings are random: classes and noise with a spectrum that falls as that of real embeddings
does. scikit-learn fits each strength from the beginning, or from the solution before it, to its
default tolerance, with the same standardized float32 rows and the same objective.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks._timing import Line, Work, interleaved
from dimefm.evaluate.probe.data import Features
from dimefm.evaluate.probe.logistic import STRENGTHS, LogisticHead, fit_path

MOST_ITERATIONS = 1000


def drawn(n_images: int, n_classes: int, dim: int) -> Features:
    """Return random unit embeddings float32 [n, D], with about equal classes."""
    draw = np.random.default_rng(0)
    spectrum = (1 + np.arange(dim)) ** -0.6
    centers = 0.9 * spectrum * draw.normal(size=(n_classes, dim))
    labels = np.arange(n_images) % n_classes
    rows = centers[labels] + spectrum * draw.normal(size=(n_images, dim))
    rows += 0.5 * draw.normal(size=dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(rows.astype(np.float32), labels)


class Path:
    """Our path; it keeps its last heads."""

    def __init__(self, features: Features, n_classes: int):
        self.features, self.n_classes = features, n_classes
        self.heads: list[LogisticHead] = []

    def run(self, repeat: int) -> None:
        """Fit all strengths."""
        self.heads = fit_path(self.features, self.n_classes, STRENGTHS)


class Reference:
    """scikit-learn's fits of all strengths; it keeps the solution of each."""

    def __init__(self, features: Features, warm_start: bool):
        centered = features.embeddings - features.embeddings.mean(axis=0)
        scale = np.sqrt(np.mean(np.square(centered)))
        self.rows = (centered / scale).astype(np.float32)
        self.labels = features.labels
        self.warm_start = warm_start
        self.solutions: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self, repeat: int) -> None:
        """Fit all strengths."""
        model = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=self.warm_start)
        solutions = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for strength in STRENGTHS:
                model.set_params(C=1 / (strength * len(self.rows)))
                model.fit(self.rows, self.labels)
                solutions.append((model.coef_.copy(), model.intercept_.copy()))
        self.solutions = solutions

    def scores(self) -> list[float]:
        """Return the objective of each solution, in float64."""
        rows = self.rows.astype(np.float64)
        places = np.arange(len(rows))
        values = []
        for strength, (weights, biases) in zip(STRENGTHS, self.solutions, strict=True):
            weights = weights.astype(np.float64)
            logits = rows @ weights.T + biases
            highest = logits.max(axis=1)
            totals = np.exp(logits - highest[:, None]).sum(axis=1)
            losses = np.log(totals) + highest - logits[places, self.labels]
            values.append(losses.mean() + strength / 2 * np.square(weights).sum())
        return values


def section(
    n_images: int, n_classes: int, dim: int, repeats: int, clock: Callable[[], float]
) -> tuple[str, list[Line]]:
    """Return the title and the lines of this part."""
    features = drawn(n_images, n_classes, dim)
    path = Path(features, n_classes)
    cold = Reference(features, warm_start=False)
    warm = Reference(features, warm_start=True)
    count = len(STRENGTHS)
    works = {
        "path": Work(path.run, count),
        "cold": Work(cold.run, count),
        "warm": Work(warm.run, count),
    }
    rates = interleaved(works, repeats, clock)
    lines = []
    for name, what, goal in (
        ("cold", "scikit-learn, cold fits", (">=", 2.0)),
        ("warm", "scikit-learn, warm starts", None),
    ):
        item = f"logistic path / {name}"
        shown = f"strengths of the path / {what}"
        lines.append(Line(item, shown, rates["path"], "fits/s", rates[name], goal))
    ours = [head.objective for head in path.heads]
    for name, reference in (("cold", cold), ("warm", warm)):
        ratios = np.array(ours) / np.array(reference.scores())
        item = f"logistic objective / {name}"
        shown = f"objective, worst of the strengths / {name} fits"
        lines.append(Line(item, shown, float(ratios.max()), "", 1.0, ("<=", 1.001)))
    return f"logistic regression, {count} strengths, {n_images} images", lines
