"""Scores of each class, and the images whose class was not recognized.

``per_class.csv`` has a row for each class, ``wrong.jsonl`` a line for each image whose most
probable class is not its own. A dataset with several labels per image has average precisions, and
no wrong images.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data import Rows
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.metrics import average_precisions
from dimefm.runtime.printable import one_line
from dimefm.storage.files import write_text

PER_CLASS = "per_class.csv"
WRONG = "wrong.jsonl"
COLUMNS = ("dataset", "class", "metric", "score", "images")


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of one dataset's images.

    ``probabilities`` [n, C] are of the images ``readable`` [n] among ``rows``; ``labels`` are those
    of all N rows, int [N] or 0/1 [N, C].
    """

    benchmark: Benchmark
    rows: Rows
    labels: np.ndarray
    probabilities: np.ndarray
    readable: np.ndarray

    def per_class(self) -> list[tuple[str, str, str, float, int]]:
        """Return a row of ``COLUMNS`` for each class that has images; scores are 0 to 1."""
        labels = self.labels[self.readable]
        n_classes = len(self.benchmark.classes)
        if self.benchmark.multilabel:
            metric = "average precision"
            images = labels.sum(axis=0)
            scores = average_precisions(self.probabilities, labels)
        else:
            metric = "accuracy"
            images = np.bincount(labels, minlength=n_classes)
            is_right = self.probabilities.argmax(axis=1) == labels
            right = np.bincount(labels[is_right], minlength=n_classes)
            scores = right / np.maximum(images, 1)
        rows = []
        for number in np.flatnonzero(images):
            name = self.benchmark.classes[number]
            score = round(float(scores[number]), 6)
            rows.append((self.benchmark.name, name, metric, score, int(images[number])))
        return rows

    def wrong(self) -> Iterator[dict]:
        """Yield what is known of each image whose most probable class is not its own."""
        if self.benchmark.multilabel:
            return
        classes = self.benchmark.classes
        labels = self.labels[self.readable]
        predicted = self.probabilities.argmax(axis=1)
        keys: Sequence[str] = ()
        shard_of_keys = -1
        for place in np.flatnonzero(predicted != labels):
            number, row = self.rows.locate(int(self.readable[place]))
            shard = self.rows.shards[number]
            if number != shard_of_keys:
                keys = shard.keys()
                shard_of_keys = number
            guess = predicted[place]
            yield {
                "dataset": self.benchmark.name,
                "source": shard.name,
                "row": row,
                "key": keys[row],
                "label": classes[labels[place]],
                "predicted": classes[guess],
                "probability": round(float(self.probabilities[place, guess]), 6),
            }


class PredictionFiles:
    """The two files in a folder; they grow by one dataset at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._table = io.StringIO()
        self._writer = csv.writer(self._table, lineterminator="\n")
        self._writer.writerow(COLUMNS)
        self._lines: list[str] = []

    def add(self, predictions: Predictions) -> None:
        """Add a dataset and write both files."""
        for dataset, name, *cells in predictions.per_class():
            self._writer.writerow((one_line(dataset), one_line(name), *cells))
        self._lines += [json.dumps(entry) + "\n" for entry in predictions.wrong()]
        write_text(self.folder / PER_CLASS, self._table.getvalue())
        write_text(self.folder / WRONG, "".join(self._lines))
