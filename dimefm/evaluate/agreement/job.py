"""Compare a student with its teacher on datasets: one result for each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.errors import CacheError, DataError
from dimefm.evaluate import profiling
from dimefm.evaluate.agreement import measures
from dimefm.evaluate.agreement.forgotten import ForgottenClass, csv_text, forgotten_classes
from dimefm.evaluate.agreement.pairs import SCALE, Pair, encode_pair
from dimefm.evaluate.agreement.spaces import closeness, why_one_space
from dimefm.evaluate.agreement.tables import markdown
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.datasets.layouts import Dataset
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.preparing import feature_store, found_or_failed, none_scored
from dimefm.evaluate.probe.confidence import RESAMPLES, paired_bootstrap
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import Failure, Result, Scores, write_scores
from dimefm.storage.files import write_text

TASK = "agreement"
TOP_1 = "top-1 agreement"
FORGOTTEN = "forgotten.csv"
LISTED = 10
"""Forgotten classes of a dataset in ``scores.json``; the file has all of them."""

PROTOCOL = (
    "Student and teacher zero-shot on the same images and prompts, each with its own preprocessing;"
    f" softmax at scale {SCALE:.0f} (temperature {1 / SCALE}) for both"
)


@dataclass(frozen=True)
class Choices:
    """What is compared: datasets below ``root`` (``names``, or all with a card), and in which
    layout. ``resamples`` and ``seed`` are those of the bootstrap.
    """

    root: Path
    names: Sequence[str] | None = None
    layout: str | None = None
    resamples: int = RESAMPLES
    seed: int = 0


def agreement(
    student: Encoder, teacher: Encoder, choices: Choices, out: Path | None, settings: Settings
) -> Scores:
    """Compare two models on datasets; return a result with the task "agreement" for each.

    The main metric of a result is the top-1 agreement; its ``details`` have everything else. With
    ``out``, that folder keeps ``scores.json``, ``report.md``, ``forgotten.csv`` and the embeddings
    of both models. A dataset that cannot be scored is listed as failed.

    Raises ModelError for a model without a text tower, and DataError when no dataset is found, none
    can be scored, or ``out`` cannot be written.
    """
    student.require_text()
    teacher.require_text()
    datasets, missing, failed = found_or_failed(choices.root, choices.names, choices.layout)
    started = time.perf_counter()
    results: list[Result] = []
    forgotten: list[ForgottenClass] = []
    with feature_store(out) as store:
        for dataset in datasets:
            try:
                with dataset_guard(dataset.folder):
                    pair = encode_pair(student, teacher, dataset, store, settings)
                    result, worse = _compare(student, teacher, dataset, pair, choices)
            except (DataError, CacheError) as error:
                failed.append(Failure(dataset.benchmark.name, str(error)))
                continue
            results.append(result)
            forgotten += worse
        if not results:
            raise none_scored(failed, choices.root, out or choices.root)
        scores = Scores(
            model=student.card.name,
            weights_sha256=student.card.weights_sha256,
            protocol=PROTOCOL,
            results=tuple(results),
            encoder=profiling.facts(student),
            summary=_averages(results),
            missing=tuple(missing),
            failed=tuple(failed),
            seconds=round(time.perf_counter() - started, 3),
            settings=_settings(student, teacher, choices),
        )
        if out is not None:
            write_text(out / FORGOTTEN, csv_text(forgotten))
            write_scores(out, scores, markdown(scores))
    return scores


def _averages(results: Sequence[Result]) -> dict[str, float]:
    return {f"mean {TOP_1}": float(np.mean([result.value for result in results]))}


def _settings(student: Encoder, teacher: Encoder, choices: Choices) -> dict[str, Any]:
    """Return the choices that decide the numbers."""
    return {
        "teacher": {
            "model": teacher.card.name,
            "weights_sha256": teacher.card.weights_sha256,
            "dim": teacher.card.dim,
            "image_parameters": teacher.image_parameters,
            "text_parameters": teacher.text_parameters,
        },
        "one_space": why_one_space(student.card, teacher.card),
        "scale": SCALE,
        "bins": measures.BINS,
        "resamples": choices.resamples,
        "seed": choices.seed,
    }


def _compare(
    student: Encoder, teacher: Encoder, dataset: Dataset, pair: Pair, choices: Choices
) -> tuple[Result, list[ForgottenClass]]:
    """Return the result of one dataset, and the classes that the student forgot."""
    benchmark = dataset.benchmark
    labels = pair.labels
    of_student = pair.student.probabilities()
    of_teacher = pair.teacher.probabilities()
    student_logits = pair.student.logits()
    teacher_logits = pair.teacher.logits()
    correlations = measures.rank_correlations(student_logits, teacher_logits)
    defined = correlations[np.isfinite(correlations)]
    metrics = {
        TOP_1: measures.top1_agreement(of_student, of_teacher),
        f"student {benchmark.metric}": float(METRICS[benchmark.metric](of_student, labels)),
        f"teacher {benchmark.metric}": float(METRICS[benchmark.metric](of_teacher, labels)),
    }
    if not benchmark.multilabel:
        metrics["student ECE"] = measures.calibration_error(of_student, labels)
        metrics["teacher ECE"] = measures.calibration_error(of_teacher, labels)
    name = benchmark.name
    worse = forgotten_classes(name, benchmark.classes, of_student, of_teacher, labels)
    one_space = bool(why_one_space(student.card, teacher.card))
    details = {
        "image": closeness(pair.student.images, pair.teacher.images, one_space).to_json(),
        "text": closeness(pair.student.classes, pair.teacher.classes, one_space).to_json(),
        "rank_correlation": float(defined.mean()) if len(defined) else None,
        "kl_teacher_student": float(measures.kl_divergences(student_logits, teacher_logits).mean()),
        "metric": benchmark.metric,
        "difference": _difference(benchmark, of_student, of_teacher, labels, choices),
        "classes": len(benchmark.classes),
        "forgotten_classes": len(worse),
        "forgotten": [entry.to_json() for entry in worse[:LISTED]],
    }
    result = Result(
        task=TASK,
        dataset=name,
        metrics=metrics,
        main_metric=TOP_1,
        samples=len(labels),
        unreadable=pair.unreadable,
        note=dataset.note,
        details=details,
    )
    return result, worse


def _difference(
    benchmark: Benchmark,
    of_student: np.ndarray,
    of_teacher: np.ndarray,
    labels: np.ndarray,
    choices: Choices,
) -> dict[str, Any] | None:
    """Return the student's metric less the teacher's with its interval, None where no resample has
    the metric.
    """
    try:
        compared = paired_bootstrap(
            of_student,
            of_teacher,
            labels,
            benchmark.metric,
            resamples=choices.resamples,
            seed=choices.seed,
        )
    except DataError:
        return None
    return compared.to_json()
