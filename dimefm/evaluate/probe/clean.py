"""The linear probe without a look at the test set: everything is chosen on validation images.

35 heads with as many pairs of a learning rate and a weight decay are trained at once. Each is
scored on the validation images after every epoch, and the best head at its best epoch names the
settings. The final head is trained with them, and predicts the test images once.

Heads and their training are those of :mod:`dimefm.evaluate.probe.heads`. With several labels per
image, probabilities are the sigmoids of the logits: a class does not depend on the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dimefm.errors import DataError
from dimefm.evaluate.probe import heads
from dimefm.evaluate.probe.data import Features, ProbeOutcome
from dimefm.evaluate.probe.heads import Heads
from dimefm.evaluate.probe.validation import Candidate, Parts, best_of, candidate, parts

RATES = np.logspace(-4, -1, num=7)
DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
MOST_EPOCHS = 50
LEAST_EPOCHS = 10
MOST_STEPS = 20_000
"""Steps of training; a large training set is shown less often, but at least ``LEAST_EPOCHS``."""


@dataclass(frozen=True)
class Choice:
    """The settings that were chosen, and the number of heads and epochs that were tried."""

    rate: float
    decay: float
    best: Candidate
    heads: int
    epochs: int


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
    """Train a linear probe and return its probabilities for the test images.

    Of ``test`` only the embeddings are used, once, by the final head. ``start`` [C, D] are the
    class weights with which the heads begin. ``validation`` is the dataset's own split.

    Raises DataError when there are too few images, or the metric does not fit the labels.
    """
    split = parts(train, validation, shots, seed)
    head, choice = fit(split, start, metric, multilabel, seed, n_classes, device)
    [logits] = head.logits_of_each(test.embeddings)
    details = {
        "protocol": "clean",
        "learning_rate": choice.rate,
        "weight_decay": choice.decay,
        "epochs": choice.best.epoch,
        "validation": choice.best.score,
        "validation_loss": choice.best.loss,
        "validation_images": len(split.val),
        "validation_source": split.source,
        "heads_tried": choice.heads,
        "epochs_tried": choice.epochs,
        "train_images": len(split.final),
        "trainable_parameters": head.weights[0].numel() + head.biases[0].numel(),
    }
    return ProbeOutcome(probabilities_of(logits, multilabel), details)


def fit(
    split: Parts,
    start: np.ndarray | None,
    metric: str,
    multilabel: bool,
    seed: int,
    n_classes: int,
    device: str = "cpu",
) -> tuple[Heads, Choice]:
    """Return the final head, alone in its ``Heads``, and how it was chosen.

    Raises DataError as :func:`run`.
    """
    choice = choose(split, start, metric, multilabel, seed, n_classes, device)
    return train_chosen(split.final, choice, start, seed, n_classes, device), choice


def train_chosen(
    features: Features,
    choice: Choice,
    start: np.ndarray | None,
    seed: int,
    n_classes: int,
    device: str = "cpu",
) -> Heads:
    """Return a head, alone in its ``Heads``, that learned from ``features`` as chosen.

    Raises DataError when its weights became infinite.
    """
    head = heads.train(
        features,
        start,
        [choice.rate],
        [choice.decay],
        epochs=choice.best.epoch,
        seed=seed,
        n_classes=n_classes,
        device=device,
    )
    if not head.alive.all():
        raise DataError(
            f"probe: the weights became infinite with {len(features)} training images (learning"
            f" rate {choice.rate:g}). Fix: use --protocol logistic"
        )
    return head


def choose(
    split: Parts,
    start: np.ndarray | None,
    metric: str,
    multilabel: bool,
    seed: int,
    n_classes: int,
    device: str = "cpu",
) -> Choice:
    """Return the rate, decay and number of epochs that score best on the validation images."""
    rates = [float(rate) for rate in RATES for _ in DECAYS]
    decays = [decay for _ in RATES for decay in DECAYS]
    epochs = epochs_for(len(split.fit))
    candidates: list[Candidate] = []

    def after_epoch(epoch: int, trained: Heads) -> None:
        for number, logits in enumerate(trained.logits_of_each(split.val.embeddings)):
            if not (trained.alive[number] and np.isfinite(logits).all()):
                continue
            probabilities = probabilities_of(logits, multilabel)
            candidates.append(candidate(number, epoch, probabilities, split.val.labels, metric))

    heads.train(
        split.fit,
        start,
        rates,
        decays,
        epochs=epochs,
        seed=seed,
        n_classes=n_classes,
        after_epoch=after_epoch,
        device=device,
    )
    if not candidates:
        raise DataError(
            "probe: no head has finite weights after an epoch. Fix: check the embeddings of the"
            " training images"
        )
    best = best_of(candidates)
    return Choice(rates[best.number], decays[best.number], best, len(rates), epochs)


def epochs_for(n_images: int) -> int:
    """Return how many epochs are tried with so many training images."""
    steps_per_epoch = math.ceil(n_images / heads.BATCH_SIZE)
    affordable = MOST_STEPS // steps_per_epoch
    return max(LEAST_EPOCHS, min(MOST_EPOCHS, affordable))


def probabilities_of(logits: np.ndarray, multilabel: bool) -> np.ndarray:
    """Return the softmax float32 [n, C] of logits [n, C], or their sigmoids for several labels."""
    if multilabel:
        return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
