"""The same tasks by this package, on the same folders and weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.evaluate import zero_shot
from dimefm.evaluate.datasets.captions import open_pairs
from dimefm.evaluate.datasets.layouts import Dataset, find
from dimefm.evaluate.metrics import accuracy, mean_per_class
from dimefm.evaluate.probe.data import load_data
from dimefm.evaluate.probe.protocols import PROTOCOLS
from dimefm.evaluate.retrieval import AT, IMAGE_TO_TEXT, TEXT_TO_IMAGE
from dimefm.evaluate.retrieval_model import evaluate_retrieval
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import recall_name

RECALLS = {
    "image_retrieval_recall": TEXT_TO_IMAGE,
    "text_retrieval_recall": IMAGE_TO_TEXT,
}
"""clip-benchmark's name of each direction -> ours."""

SETTINGS = Settings(dtype="float32", batch_size=64, workers=2, decoder="pil")
"""open_clip's own decoder, to the last bit."""


@dataclass(frozen=True)
class ZeroShot:
    """Predictions [n] of a dataset's images, their labels, and two metrics, 0 to 1."""

    predicted: np.ndarray
    labels: np.ndarray
    accuracy: float
    mean_per_class: float
    seconds: float


def dataset_of(root: Path, name: str) -> Dataset:
    """Return the dataset in clip-benchmark's folder ``wds_NAME``."""
    [dataset], _ = find(root, [f"wds_{name}"], layout="webdataset")
    return dataset


def zero_shot_scores(encoder: Encoder, root: Path, name: str, store: Path) -> ZeroShot:
    """Score a dataset zero-shot."""
    dataset = dataset_of(root, name)
    started = time.perf_counter()
    _, predictions = zero_shot.zero_shot(encoder, dataset, store, SETTINGS)
    seconds = time.perf_counter() - started
    labels = predictions.labels[predictions.readable]
    return ZeroShot(
        predicted=predictions.probabilities.argmax(axis=1),
        labels=labels,
        accuracy=accuracy(predictions.probabilities, labels),
        mean_per_class=mean_per_class(predictions.probabilities, labels),
        seconds=seconds,
    )


def recalls(encoder: Encoder, root: Path, name: str, store: Path) -> dict[str, float]:
    """Return recall at each K in both directions, under clip-benchmark's names."""
    pairs = open_pairs(root / f"wds_{name}", split="test")
    result = evaluate_retrieval(encoder, pairs, store, SETTINGS)
    found = {}
    for theirs, direction in RECALLS.items():
        for k in AT:
            found[f"{theirs}@{k}"] = result.metrics[recall_name(direction, k)]
    return found


def probe_scores(
    encoder: Encoder, root: Path, name: str, store: Path, protocol: str, seeds: list[int]
) -> list[float]:
    """Return the accuracy of a probe on the test images, for each seed."""
    dataset = dataset_of(root, name)
    data = load_data(encoder, dataset, store, SETTINGS)
    scores = []
    for seed in seeds:
        outcome = PROTOCOLS[protocol](
            data.train.features,
            data.test.features,
            data.start,
            "accuracy",
            False,
            seed,
            n_classes=len(dataset.benchmark.classes),
        )
        scores.append(accuracy(outcome.probabilities, data.test.features.labels))
    return scores
