"""The protocols of probes by name: each is a function that trains on the embeddings of one dataset
and returns probabilities for its test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol as Interface

import numpy as np

from dimefm.evaluate.probe import clean, elevater, logistic
from dimefm.evaluate.probe.data import Features, ProbeOutcome


class Protocol(Interface):
    """One way to train and choose a probe."""

    def __call__(
        self,
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
        """Return the probabilities [n, C] of the n test images, and details of the probe.

        ``start`` [C, D] are zero-shot class weights, None when the encoder has no text tower.
        ``metric`` is a name in METRICS; with ``multilabel`` labels are 0/1 [n, C]. ``seed`` decides
        all that is random. ``shots`` says how many training images per class were drawn (1: two),
        None that all are there. ``validation`` is the dataset's own split for that, if any; the
        toolkit's protocol does not use it.
        """


PROTOCOLS: Mapping[str, Protocol] = {
    "clean": clean.run,
    "elevater": elevater.run,
    "logistic": logistic.run,
}
DEFAULT = "clean"
