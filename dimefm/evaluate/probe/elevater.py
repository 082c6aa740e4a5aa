"""The linear probe as the ELEVATER toolkit runs it, on embeddings that are computed once.

Hyper-parameters are chosen by 90 runs of 10 epochs on 80 % of the training images, each scored by
its best epoch on the other 20 %. A final run of 50 epochs takes all training images.

**The toolkit scores the test set after each of these 50 epochs and reports the maximum.** So does
this protocol: the epoch is chosen on the test set, and the score is too high. The details name it
``"best epoch on the test set"`` and have the last epoch beside it.

Source: Elevater_Toolkit_IC ``evaluation/full_model_finetune.py`` and ``commands/linear_probe.py``.
Deviations: embeddings have unit length before BatchNorm; a run whose weights become infinite scores
0, where the toolkit scores whatever its metric makes of NaN.
"""

from __future__ import annotations

import numpy as np

from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe import heads
from dimefm.evaluate.probe.data import Features, ProbeOutcome
from dimefm.evaluate.probe.heads import Heads
from dimefm.evaluate.probe.sampling import sample_few_shot_subset, split_train_val
from dimefm.evaluate.probe.sweep import SweepRun, sweep

SWEEP_EPOCHS = 10
FINAL_EPOCHS = 50
MOST_PER_CLASS = 10_000
"""Images of a class in the sweep; of the 20 sets only PatchCamelyon has more."""

BEST_EPOCH = "best epoch on the test set"
LAST_EPOCH = "last epoch"


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

    ``validation`` is not used, as in the toolkit.
    ``start`` [C, D] are the zero-shot class weights with which the head begins. ``shots`` is the
    number of training images per class, None for all of them. With one shot, ``train`` has two
    images per class: one to train on and one for validation, which the final run leaves out.

    Raises DataError when there are too few images, or the metric does not fit the labels.
    """
    in_sweep = _for_sweep(train, seed)
    fit_places, val_places = split_train_val(in_sweep.labels)
    fit = in_sweep.take(fit_places)
    val = in_sweep.take(val_places)
    runs, best = choose(fit, val, start, metric, seed, n_classes, device)
    final = fit if shots == 1 else train
    follower = _TestScores(test, metric)
    trained = heads.train(
        final,
        start,
        [best.rate],
        [best.decay],
        epochs=FINAL_EPOCHS,
        seed=seed,
        n_classes=n_classes,
        after_epoch=follower.add,
        device=device,
    )
    details = {
        "protocol": "elevater",
        "learning_rate": best.rate,
        "weight_decay": best.decay,
        "validation": best.score,
        "sweep_runs": len(runs),
        "train_images": len(final),
        "epochs": FINAL_EPOCHS,
        "epoch": follower.best_epoch,
        BEST_EPOCH: follower.best,
        LAST_EPOCH: follower.last,
        "trainable_parameters": trained.weights[0].numel() + trained.biases[0].numel(),
    }
    return ProbeOutcome(follower.probabilities, details)


def choose(
    fit: Features,
    val: Features,
    start: np.ndarray | None,
    metric: str,
    seed: int,
    n_classes: int,
    device: str = "cpu",
) -> tuple[list[SweepRun], SweepRun]:
    """Return the runs of the sweep, and the best one: trained on ``fit``, scored on ``val``."""

    def score_runs(rates: list[float], decays: list[float]) -> np.ndarray:
        best = np.zeros(len(rates))

        def after_epoch(_: int, trained: Heads) -> None:
            np.maximum(best, trained.scores(val, metric), out=best)

        heads.train(
            fit,
            start,
            rates,
            decays,
            epochs=SWEEP_EPOCHS,
            seed=seed,
            n_classes=n_classes,
            after_epoch=after_epoch,
            device=device,
        )
        return best

    return sweep(score_runs)


def _for_sweep(train: Features, seed: int) -> Features:
    """Return the images of the sweep: at most ``MOST_PER_CLASS`` of each class."""
    labels = train.labels
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    if counts.max() <= MOST_PER_CLASS:
        return train
    return train.take(sample_few_shot_subset(labels, MOST_PER_CLASS, seed))


class _TestScores:
    """Scores on the test set after each epoch, and the probabilities of the best epoch."""

    def __init__(self, test: Features, metric: str):
        self.test = test
        self.metric = metric
        self.best = -1.0
        self.best_epoch = 0
        self.last = 0.0
        self.probabilities = np.empty(0)

    def add(self, epoch: int, trained: Heads) -> None:
        """Score an epoch; of equal scores the earlier epoch is the best."""
        probabilities = trained.probabilities(self.test.embeddings, 0)
        if np.isfinite(probabilities).all():
            self.last = METRICS[self.metric](probabilities, self.test.labels)
        else:
            self.last = 0.0
            probabilities = np.full_like(probabilities, 1 / probabilities.shape[1])
        if self.last > self.best:
            self.best = self.last
            self.best_epoch = epoch
            self.probabilities = probabilities
