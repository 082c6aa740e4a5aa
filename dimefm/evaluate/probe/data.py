"""What a probe learns from and what it returns: embeddings with labels, and probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dimefm.data import Rows
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.datasets.layouts import Dataset
from dimefm.evaluate.features import image_features, prompt_weights
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder


@dataclass(frozen=True)
class Features:
    """Embeddings float32 [n, D] of n images, and their labels: int64 [n], or 0/1 [n, C]."""

    embeddings: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        embeddings, labels = self.embeddings, self.labels
        if embeddings.ndim != 2 or labels.ndim not in (1, 2) or len(embeddings) != len(labels):
            raise DataError(
                f"probe: expected embeddings [n, D] with n labels, found shapes {embeddings.shape}"
                f" and {labels.shape}. Fix: pass the embeddings and labels of the same images"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray) -> Features:
        """Return the images at ``places`` int64 [m], in their order."""
        return Features(self.embeddings[places], self.labels[places])


@dataclass(frozen=True)
class ProbeOutcome:
    """Probabilities float32 [n, C] of the n test images, and what a report says of the probe.

    ``details`` are ready for JSON. The key ``trainable_parameters`` is the number of weights that
    were trained.
    """

    probabilities: np.ndarray
    details: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeSplit:
    """Embeddings of one split's readable images.

    ``rows`` are all N images of the split and ``labels`` their labels; ``readable`` int64 [n] are
    the numbers of the images in ``features``.
    """

    rows: Rows
    labels: np.ndarray
    readable: np.ndarray
    features: Features

    @property
    def unreadable(self) -> int:
        """Number of images that could not be read."""
        return len(self.labels) - len(self.readable)


@dataclass(frozen=True)
class ProbeData:
    """One dataset for probes of one encoder.

    ``start`` are the zero-shot class weights float32 [C, D]: unit length, in the order of the
    benchmark's classes; None for an encoder without a text tower. Embeddings have unit length.
    ``val`` is None unless it was asked for and is there.
    """

    benchmark: Benchmark
    start: np.ndarray | None
    train: ProbeSplit
    test: ProbeSplit
    val: ProbeSplit | None = None


def load_data(
    encoder: Encoder,
    dataset: Dataset,
    store: Path,
    settings: Settings,
    *,
    with_val: bool = False,
) -> ProbeData:
    """Return the embeddings of a dataset's training and test images, kept in ``store``.

    The toolkit trains on the index ``train`` alone and never reads ``val`` (Elevater_Toolkit_IC
    ``evaluation/feature.py:612-615``). ``with_val`` reads it, where there is one.

    Raises DataError when the dataset has no training split, or no image of a split can be read, and
    CacheError as :func:`dimefm.evaluate.features.image_features`.
    """
    benchmark = dataset.benchmark
    start = None
    if encoder.has_text:
        start = prompt_weights(encoder, benchmark, store, settings)
    train = _split(encoder, dataset, "train", store, settings)
    test = _split(encoder, dataset, "test", store, settings)
    val = None
    if with_val and dataset.has("val"):
        val = _split(encoder, dataset, "val", store, settings)
    return ProbeData(benchmark, start, train, test, val)


def _split(
    encoder: Encoder, dataset: Dataset, split: str, store: Path, settings: Settings
) -> ProbeSplit:
    rows, labels, _ = dataset.rows(split)
    embeddings, readable = image_features(encoder, dataset.benchmark, rows, store, settings)
    features = Features(np.asarray(embeddings, dtype=np.float32), labels[readable])
    return ProbeSplit(rows, labels, readable, features)
