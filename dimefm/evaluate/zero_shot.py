"""Zero-shot evaluation: encode images and class prompts, then score the probabilities.

The image and prompt embeddings of an encoder are kept under its fingerprint, so a second evaluation
reads them back. Token embeddings are not kept.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.errors import CacheError, DataError
from dimefm.evaluate import profiling, zero_shot_tokens
from dimefm.evaluate.benchmark import ELEVATER_SETS, suite
from dimefm.evaluate.classifier import probabilities
from dimefm.evaluate.datasets.layouts import Dataset, find
from dimefm.evaluate.datasets.split_sizes import with_split_sizes
from dimefm.evaluate.features import for_benchmark, image_features, prompt_weights
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.kept_predictions import keep, of_zero_shot, remove_others
from dimefm.evaluate.knowledge import Knowledge, with_knowledge
from dimefm.evaluate.predictions import PredictionFiles, Predictions
from dimefm.evaluate.preparing import (
    check_metric,
    feature_store,
    found_or_failed,
    none_found,
    none_scored,
    note_own_folders,
    settings_of,
    with_metric,
)
from dimefm.evaluate.reports import markdown
from dimefm.evaluate.result import classification_result
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.models.filip import TokenMaps
from dimefm.runs.scores import (
    ZERO_SHOT,
    ZERO_SHOT_BY_TOKENS,
    Failure,
    Result,
    ZeroShotScores,
    write_scores,
)

PROTOCOL = "ELEVATER zero-shot: prompts normalised, averaged, normalised; softmax at scale 100"

OnResult = Callable[[Result], None]
OnFailure = Callable[[str, Exception], None]


def evaluate(
    encoder: Encoder,
    root: str | Path,
    *,
    names: Sequence[str] | None = None,
    out: str | Path | None = None,
    layout: str | None = None,
    metric: str | None = None,
    decoder: str = "turbo",
    batch_size: int = 256,
    workers: int = 2,
    maps: TokenMaps | None = None,
    on_result: OnResult | None = None,
    on_failure: OnFailure | None = None,
) -> list[Result]:
    """Score ``encoder`` zero-shot on the datasets below ``root``; return one result per dataset.

    ``names`` are benchmarks or folders; without them every folder that a card claims is scored.
    With ``out``, that folder keeps ``scores.json``, ``report.md``, ``per_class.csv``,
    ``wrong.jsonl`` and the features; without it nothing is kept. ``metric`` replaces the metric of
    every dataset, and ``decoder`` is one of ``models/preprocess.py``. With ``maps``, images and
    prompts are compared by tokens. ``on_result`` is called with each result as soon as it is known.

    Raises DataError when no dataset is found. A dataset that cannot be scored, and a name without a
    folder, raise too, unless ``on_failure`` is passed: it gets the dataset's name and the error.
    """
    encoder.require_text()
    fail = _raise if on_failure is None else on_failure
    check_metric(metric)
    datasets, missing = find(root, names, layout=layout, every_card=True, on_failure=fail)
    if names is not None:
        for name in missing:
            fail(name, DataError(f"{root}: no folder of the dataset '{name}'. Fix: add its folder"))
    if not datasets:
        raise none_found(root)
    evaluation = _Evaluation(encoder, maps, missing, whole_suite=names is None, metric=metric)
    folder = None if out is None else Path(out)
    settings = settings_of(batch_size, workers, decoder)
    evaluation.run(datasets, folder, settings, on_result, fail)
    return evaluation.results


def elevater(
    encoder: Encoder,
    root: Path,
    out: Path,
    names: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    metric: str | None = None,
    decoder: str = "turbo",
    batch_size: int = 256,
    workers: int = 2,
    maps: TokenMaps | None = None,
    knowledge: Knowledge | None = None,
    on_result: OnResult | None = None,
) -> ZeroShotScores:
    """Score ``encoder`` zero-shot and keep the scores in ``out``, see :func:`evaluate`.

    Images and prompts are compared by their embeddings or, with ``maps``, by their tokens. With
    ``knowledge``, prompts have the knowledge of their classes. Without ``names`` every folder that
    a card claims is scored; of the 20 ELEVATER sets, those without a folder are listed as missing,
    and the mean is over these sets only where one of them is scored. A dataset that cannot be read
    is listed as failed with its reason. The files are written again after each dataset (``pending``
    names those still to come). A second evaluation with the same ``out`` waits for the first.

    Returns the scores. Raises DataError when no dataset is found, none can be scored, or ``out``
    cannot be written.
    """
    encoder.require_text()
    check_metric(metric)
    evaluation = _Evaluation(
        encoder, maps, whole_suite=names is None, metric=metric, knowledge=knowledge
    )
    datasets, evaluation.missing, evaluation.failed = found_or_failed(root, names, layout)
    if names is None:
        note_own_folders(root)
    settings = settings_of(batch_size, workers, decoder)
    scores = evaluation.run(datasets, out, settings, on_result, evaluation.add_failure)
    if scores is None:
        raise none_scored(evaluation.failed, root, out)
    return scores


def _raise(name: str, error: Exception) -> None:
    raise error


@dataclass
class _Evaluation:
    """An encoder that is scored on one dataset after the other, and the results so far."""

    encoder: Encoder
    maps: TokenMaps | None
    missing: Sequence[str] = ()
    whole_suite: bool = True
    metric: str | None = None
    knowledge: Knowledge | None = None
    failed: list[Failure] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What the encoder costs, measured once."""
        return profiling.facts(self.encoder)

    def add_failure(self, name: str, error: Exception) -> None:
        """List a dataset as failed."""
        self.failed.append(Failure(name, str(error)))

    def run(
        self,
        datasets: list[Dataset],
        out: Path | None,
        settings: Settings,
        on_result: OnResult | None,
        on_failure: OnFailure,
    ) -> ZeroShotScores | None:
        """Score the datasets and return the scores, None without ``out`` or when there are none.

        With ``out``, the files are written after each dataset. A scored dataset is removed from the
        list, which closes its files.
        """
        scores = None
        with feature_store(out) as store:
            files = None if out is None else PredictionFiles(out)
            if out is not None:
                remove_others(out, self.encoder.card.weights_sha256)
            started = time.perf_counter()
            while datasets:
                dataset = datasets.pop(0)
                try:
                    with dataset_guard(dataset.folder):
                        dataset = with_metric(dataset, self.metric)
                        dataset = with_knowledge(dataset, self.knowledge)
                        scored = zero_shot(self.encoder, dataset, store, settings, self.maps)
                        result, predictions = scored
                except (DataError, CacheError) as error:
                    on_failure(dataset.benchmark.name, error)
                else:
                    self.results.append(result)
                    if out is not None and files is not None:
                        files.add(predictions)
                        kept = of_zero_shot(predictions, result.task)
                        keep(out, kept, self.encoder.card)
                    if on_result is not None:
                        on_result(result)
                if not self.results or out is None:
                    continue
                pending = [later.benchmark.name for later in datasets]
                scores = self.scores(pending, round(time.perf_counter() - started, 3))
                write_scores(out, scores, markdown(scores))
        return scores

    def scores(self, pending: Sequence[str], seconds: float) -> ZeroShotScores:
        """Return the results so far with what is known of the encoder and the other datasets."""
        suite_names = suite()
        in_suite = [result for result in self.results if result.dataset in suite_names]
        counted = in_suite if self.whole_suite and in_suite else self.results
        counted_names = {result.dataset for result in counted}
        by_tokens = self.maps is not None
        if self.maps is None:
            protocol = PROTOCOL
        else:
            protocol = f"{zero_shot_tokens.PROTOCOL}; padding {self.maps.padding}"
        if self.knowledge is not None:
            protocol += f"; {self.knowledge.describe()}"
        return ZeroShotScores(
            model=self.encoder.card.name,
            weights_sha256=self.encoder.card.weights_sha256,
            image_parameters=self.encoder.image_parameters,
            text_parameters=self.encoder.text_parameters,
            by_tokens=by_tokens,
            protocol=protocol,
            results=tuple(self.results),
            mean=float(np.mean([result.value for result in counted])),
            not_in_mean=[
                result.dataset for result in self.results if result.dataset not in counted_names
            ],
            is_elevater_average=(
                not by_tokens
                and self.metric is None
                and self.whole_suite
                and len(in_suite) == ELEVATER_SETS
            ),
            missing=self.missing,
            failed=tuple(self.failed),
            pending=pending,
            seconds=seconds,
            metric=self.metric,
            encoder=self.facts,
        )


def zero_shot(
    encoder: Encoder,
    dataset: Dataset,
    store: Path,
    settings: Settings,
    maps: TokenMaps | None = None,
) -> tuple[Result, Predictions]:
    """Return the zero-shot result of one dataset, and the predictions that it is made of.

    Images and prompts are compared by tokens with ``maps``, else by embeddings.

    Embeddings are kept in (and taken from) the folder ``store``.

    Source of the protocol by embeddings: ELEVATER toolkit, evaluation/feature.py:546-575 and
    clip_zeroshot_evaluator.py:17-20; by tokens: FILIP as released with DeCLIP,
    prototype/solver/filip_solver.py:882-944.
    """
    benchmark = dataset.benchmark
    rows, labels, _ = dataset.rows("test")
    if maps is None:
        images, readable = image_features(encoder, benchmark, rows, store, settings)
        weights = prompt_weights(encoder, benchmark, store, settings)
        class_probabilities = probabilities(images, weights)
        task = ZERO_SHOT
    else:
        adapted = for_benchmark(encoder, benchmark)
        class_probabilities, readable = zero_shot_tokens.probabilities(
            adapted, maps, benchmark, rows, settings
        )
        task = ZERO_SHOT_BY_TOKENS
    result = classification_result(
        benchmark, class_probabilities, labels, readable, task=task, note=dataset.note
    )
    result = with_split_sizes(result, dataset)
    return result, Predictions(benchmark, rows, labels, class_probabilities, readable)
