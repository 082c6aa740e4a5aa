"""Score a model zero-shot on one folder of one's own, and say which classes it takes for which."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.evaluate import confusions, profiling, score_tables
from dimefm.evaluate.confusions import WrongPair, most_confused
from dimefm.evaluate.datasets.layouts import Dataset
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.predictions import PER_CLASS, PredictionFiles, Predictions
from dimefm.evaluate.preparing import feature_store
from dimefm.evaluate.reports import in_markdown
from dimefm.evaluate.zero_shot import PROTOCOL, zero_shot
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import Result, Scores, write_scores

TITLE = "Zero-shot scores"
FOR_ONE_LABEL = ("accuracy", "mean_per_class")
"""Metrics that every dataset with one label an image has."""


@dataclass(frozen=True)
class FolderScores:
    """The scores of one folder, and its most frequent wrong pairs."""

    scores: Scores
    pairs: Sequence[WrongPair]

    def terminal(self) -> str:
        """Return the scores and the wrong pairs as tables for a terminal."""
        text = score_tables.terminal(self.scores)
        if not self.pairs:
            return text
        lines = ["", "", f"most frequent wrong pairs (all classes: {PER_CLASS}):", ""]
        return text + "\n".join([*lines, *confusions.terminal_table(self.pairs)])

    def markdown(self) -> str:
        """Return the scores and the wrong pairs as a Markdown page."""
        text = score_tables.markdown(self.scores, TITLE)
        if not self.pairs:
            return text
        safe = [
            dataclasses.replace(
                pair, label=in_markdown(pair.label), predicted=in_markdown(pair.predicted)
            )
            for pair in self.pairs
        ]
        table = "\n".join(confusions.page_table(safe))
        return f"{text}\n## Most frequent wrong pairs\n\n{table}\n"


def score_folder(
    encoder: Encoder, dataset: Dataset, out: Path | None, settings: Settings
) -> FolderScores:
    """Score the dataset of :func:`~dimefm.evaluate.datasets.own_folder.open_folder` zero-shot.

    With ``out``, that folder keeps ``scores.json``, ``report.md``, ``per_class.csv``,
    ``wrong.jsonl`` and the embeddings, as those of the ELEVATER datasets.

    Raises ModelError for a model without a text tower, and DataError when no image can be read or
    ``out`` cannot be written.
    """
    encoder.require_text()
    started = time.perf_counter()
    with feature_store(out) as store:
        with dataset_guard(dataset.folder):
            result, predictions = zero_shot(encoder, dataset, store, settings)
        result = _with_all_metrics(result, predictions)
        pairs = most_confused(predictions)
        seconds = round(time.perf_counter() - started, 3)
        scores = FolderScores(_scores(encoder, dataset, result, pairs, seconds), pairs)
        if out is not None:
            PredictionFiles(out).add(predictions)
            write_scores(out, scores.scores, scores.markdown())
    return scores


def _with_all_metrics(result: Result, predictions: Predictions) -> Result:
    """Return the result with accuracy and mean per class, where images have one label each."""
    if predictions.benchmark.multilabel:
        return result
    labels = predictions.labels[predictions.readable]
    metrics = dict(result.metrics)
    for name in FOR_ONE_LABEL:
        metrics.setdefault(name, METRICS[name](predictions.probabilities, labels))
    return dataclasses.replace(result, metrics=metrics)


def _scores(
    encoder: Encoder,
    dataset: Dataset,
    result: Result,
    pairs: Sequence[WrongPair],
    seconds: float,
) -> Scores:
    details = dict(result.details)
    details["wrong_pairs"] = [dataclasses.asdict(pair) for pair in pairs]
    summary = {}
    for name, value in result.metrics.items():
        if name != result.main_metric:
            summary[name] = value
    benchmark = dataset.benchmark
    return Scores(
        model=encoder.card.name,
        weights_sha256=encoder.card.weights_sha256,
        protocol=PROTOCOL,
        results=(dataclasses.replace(result, details=details),),
        encoder=profiling.facts(encoder),
        summary=summary,
        seconds=seconds,
        settings={
            "layout": dataset.layout,
            "classes": list(benchmark.classes),
            "templates": list(benchmark.templates),
        },
    )
