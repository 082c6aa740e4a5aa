"""Logistic regression on embeddings, with the strength of its regularization chosen on validation.

The mean loss of n images plus ``strength / 2`` times the squared weights is convex: the head does
not depend on a start, a learning rate or an order of images. One image with one label has the
cross-entropy of C classes; with several labels there is a logistic regression for each class.
Biases are not regularized. Embeddings are centered and scaled to a mean variance of 1.

All strengths are solved one after another, each from the solution before it, by L-BFGS of scipy
with products in float32. The weights are those of the principal axes of the embeddings, divided by
the root of the curvature that the loss has along each axis. That takes a few iterations where the
plain weights need dozens. An iteration stops when a Newton step can gain no more than ``TOLERANCE``
of the objective.

scikit-learn's ``LogisticRegression(C=1 / (strength * n))`` has the same objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from dimefm.errors import DataError
from dimefm.evaluate.probe.data import Features, ProbeOutcome
from dimefm.evaluate.probe.validation import best_of, candidate, parts

STRENGTHS = np.logspace(1, -6, num=20)
"""Strengths of regularization, the strongest first."""

TOLERANCE = 3e-5
MOST_ITERATIONS = 500
LEAST_CURVATURE = 1e-3


@dataclass(frozen=True)
class LogisticHead:
    """Weights float32 [C, D] and biases [C] for embeddings [n, D] less ``mean`` [D], divided by
    ``scale``.

    ``classes`` int64 are the classes that the weights belong to, in order. The other classes of
    ``n_classes`` have the probability ``constant`` [n_classes]: no training image tells them apart.
    ``objective`` is what was minimized.
    """

    weights: np.ndarray
    biases: np.ndarray
    mean: np.ndarray
    scale: float
    classes: np.ndarray
    constant: np.ndarray
    several_labels: bool
    objective: float

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the probabilities float32 [n, n_classes] of embeddings [n, D]."""
        rows = _standardized(embeddings, self.mean, self.scale)
        logits = rows @ self.weights.T + self.biases
        probabilities = np.tile(self.constant, (len(rows), 1))
        if self.several_labels:
            probabilities[:, self.classes] = _sigmoid(logits)
        else:
            probabilities[:, self.classes] = _softmax_in_place(logits)[0]
        return probabilities


def run(
    train: Features,
    test: Features,
    start: np.ndarray | None,
    metric: str,
    multilabel: bool,
    seed: int,
    *,
    n_classes: int,
    shots: int | None = None,
    device: str = "cpu",
    validation: Features | None = None,
) -> ProbeOutcome:
    """Fit a logistic regression and return its probabilities for the test images.

    Of ``test`` only the embeddings are used, once. ``start`` is not used, and neither is
    ``device``: the CPU computes. ``validation`` is the dataset's own split.

    Raises DataError when there are too few images, or the metric does not fit the labels.
    """
    split = parts(train, validation, shots, seed)
    candidates = []
    heads = fit_path(split.fit, n_classes, STRENGTHS)
    for number, head in enumerate(heads):
        probabilities = head.probabilities(split.val.embeddings)
        candidates.append(candidate(number, 0, probabilities, split.val.labels, metric))
    best = best_of(candidates)
    strength = float(STRENGTHS[best.number])
    if split.final is split.fit:
        final = heads[best.number]
    else:
        [final] = fit_path(split.final, n_classes, [strength])
    details = {
        "protocol": "logistic",
        "strength": strength,
        "validation": best.score,
        "validation_loss": best.loss,
        "validation_images": len(split.val),
        "validation_source": split.source,
        "strengths_tried": len(candidates),
        "train_images": len(split.final),
        "trainable_parameters": final.weights.size + final.biases.size,
    }
    return ProbeOutcome(final.probabilities(test.embeddings), details)


def fit_path(
    features: Features, n_classes: int, strengths: Sequence[float] | np.ndarray
) -> list[LogisticHead]:
    """Return the logistic regression of each strength, a positive number; best strongest first.

    Raises DataError when all images have the same labels, or one is not a class.
    """
    problem = _Problem(features, n_classes)
    heads = []
    weights = np.zeros((len(problem.classes), problem.rows.shape[1]), dtype=np.float32)
    biases = np.zeros(len(problem.classes), dtype=np.float32)
    for strength in strengths:
        solver = _Solver(problem, float(strength))
        weights, biases, objective = solver.solve(weights, biases)
        heads.append(problem.head(weights, biases, objective))
    return heads


class _Problem:
    """The images along their principal axes, and their targets of the classes that differ.

    ``rows`` float32 [n, D] = standardized embeddings times ``axes`` [D, D]; ``variances`` [D] are
    those along the axes. ``targets`` float32 [n, C] are 0 or 1.
    """

    def __init__(self, features: Features, n_classes: int):
        embeddings = np.asarray(features.embeddings, dtype=np.float32)
        labels = features.labels
        self.several_labels = labels.ndim == 2
        self.n_classes = n_classes
        _check(labels, n_classes)
        targets = labels if self.several_labels else _one_hot(labels, n_classes)
        shares = targets.mean(axis=0)
        self.classes = np.flatnonzero((shares > 0) & (shares < 1))
        if not len(self.classes):
            raise DataError(
                f"probe: all {len(labels)} training images have the same labels. Fix: add images of"
                " another class"
            )
        self.constant = np.round(shares).astype(np.float32)
        self.targets = np.ascontiguousarray(targets[:, self.classes], dtype=np.float32)
        self.mean = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
        centered = embeddings - self.mean
        self.scale = float(np.sqrt(np.mean(np.square(centered), dtype=np.float64))) or 1.0
        standardized = centered / np.float32(self.scale)
        covariance = (standardized.T @ standardized / len(labels)).astype(np.float64)
        variances, axes = np.linalg.eigh(covariance)
        self.variances = np.maximum(variances, 0)
        self.axes = axes.astype(np.float32)
        self.rows = standardized @ self.axes
        spread = shares[self.classes] * (1 - shares[self.classes])
        self.curvature = max(float(spread.mean()), LEAST_CURVATURE)

    def head(self, weights: np.ndarray, biases: np.ndarray, objective: float) -> LogisticHead:
        """Return the head of weights [C, D] along the axes and biases [C]."""
        return LogisticHead(
            weights=weights @ self.axes.T,
            biases=biases,
            mean=self.mean,
            scale=self.scale,
            classes=self.classes,
            constant=self.constant,
            several_labels=self.several_labels,
            objective=objective,
        )

    def losses(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean loss and its gradient [n, C] in the logits [n, C], which are lost."""
        n_images = len(logits)
        of_targets = (logits * self.targets).sum(dtype=np.float64)
        if self.several_labels:
            softplus = np.logaddexp(0, logits).sum(dtype=np.float64)
            errors = _sigmoid(logits)
            loss = softplus - of_targets
        else:
            errors, log_totals = _softmax_in_place(logits)
            loss = log_totals.sum(dtype=np.float64) - of_targets
        errors -= self.targets
        errors /= n_images
        return float(loss) / n_images, errors


class _Solver:
    """L-BFGS for one strength, on weights that are scaled to about equal curvature."""

    def __init__(self, problem: _Problem, strength: float):
        self.problem = problem
        self.strength = strength
        curvatures = problem.variances * problem.curvature + strength
        self.scales = (1 / np.sqrt(curvatures)).astype(np.float32)
        self.bias_scale = np.float32(1 / np.sqrt(problem.curvature))
        self.rows = problem.rows * self.scales
        self.shape = (len(problem.classes), len(self.scales))
        self.value = 0.0
        self.gain = 0.0

    def solve(
        self, weights: np.ndarray, biases: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return (weights [C, D], biases [C], objective), beginning at other ones."""
        first = np.concatenate([(weights / self.scales).ravel(), biases / self.bias_scale])
        first = first.astype(np.float64)
        self.objective(first)
        best = first
        if not self._is_solved():
            best = minimize(
                self.objective,
                first,
                jac=True,
                method="L-BFGS-B",
                callback=self._stop_when_solved,
                options={"maxiter": MOST_ITERATIONS, "gtol": 0, "ftol": 0},
            ).x
        objective, _ = self.objective(best)
        scaled_weights, scaled_biases = self._parts(best)
        return scaled_weights * self.scales, scaled_biases * self.bias_scale, objective

    def objective(self, scaled: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient in the scaled weights and biases, flat."""
        scaled_weights, scaled_biases = self._parts(scaled)
        logits = self.rows @ scaled_weights.T
        logits += scaled_biases * self.bias_scale
        loss, errors = self.problem.losses(logits)
        weights = scaled_weights * self.scales
        penalty = self.strength / 2 * float(np.square(weights, dtype=np.float64).sum())
        in_weights = errors.T @ self.rows
        in_weights += self.strength * weights * self.scales
        in_biases = errors.sum(axis=0) * self.bias_scale
        gradient = np.concatenate([in_weights.ravel(), in_biases]).astype(np.float64)
        self.value = loss + penalty
        self.gain = float(gradient @ gradient) / 2
        return self.value, gradient

    def _parts(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = scaled.astype(np.float32)
        n_classes, dim = self.shape
        return flat[: n_classes * dim].reshape(self.shape), flat[n_classes * dim :]

    def _is_solved(self) -> bool:
        """Tell whether a Newton step with the curvature of the start can gain little.

        The scaled problem has about the curvature 1, so that a step gains half the squared
        gradient.
        """
        return self.gain <= TOLERANCE * self.value

    def _stop_when_solved(self, intermediate_result) -> None:
        if self._is_solved():
            raise StopIteration


def _check(labels: np.ndarray, n_classes: int) -> None:
    is_right = labels.shape[1] == n_classes if labels.ndim == 2 else labels.max() < n_classes
    if not is_right or labels.min() < 0:
        raise DataError(
            f"probe: labels of shape {labels.shape} with values from {labels.min()} to"
            f" {labels.max()} do not fit {n_classes} classes. Fix: correct the labels"
        )


def _standardized(embeddings: np.ndarray, mean: np.ndarray, scale: float) -> np.ndarray:
    return (np.asarray(embeddings, dtype=np.float32) - mean) / np.float32(scale)


def _one_hot(labels: np.ndarray, n_classes: int) -> np.ndarray:
    targets = np.zeros((len(labels), n_classes), dtype=np.float32)
    targets[np.arange(len(labels)), labels] = 1
    return targets


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _softmax_in_place(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the softmax [n, C], in the memory of the logits, and the logarithm of its sums [n]."""
    highest = logits.max(axis=1, keepdims=True)
    logits -= highest
    np.exp(logits, out=logits)
    totals = logits.sum(axis=1, keepdims=True)
    logits /= totals
    return logits, (np.log(totals) + highest)[:, 0]
