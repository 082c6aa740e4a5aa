"""Zero-shot, probes and fine-tuning of one encoder on datasets, and the files that keep them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.errors import CacheError, DataError
from dimefm.evaluate.benchmark import ELEVATER_SETS, suite
from dimefm.evaluate.datasets.layouts import Dataset
from dimefm.evaluate.datasets.split_sizes import with_split_sizes
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.kept_predictions import keep, of_zero_shot, remove_others, with_seeds
from dimefm.evaluate.knowledge import Knowledge, with_knowledge
from dimefm.evaluate.metrics import METRICS, chance, with_unreadable_as_wrong
from dimefm.evaluate.predictions import PredictionFiles, Predictions
from dimefm.evaluate.preparing import (
    check_metric,
    feature_store,
    found_or_failed,
    none_scored,
    note_own_folders,
    settings_of,
    with_metric,
)
from dimefm.evaluate.probe import finetune
from dimefm.evaluate.probe.confidence import Interval, bootstrap, over_seeds
from dimefm.evaluate.probe.data import ProbeData, ProbeOutcome, load_data
from dimefm.evaluate.probe.elevater import LAST_EPOCH
from dimefm.evaluate.probe.protocols import PROTOCOLS
from dimefm.evaluate.probe.sampling import sample_few_shot_subset
from dimefm.evaluate.probe.tasks import FINE_TUNING, Plan, Task
from dimefm.evaluate.profiling import facts
from dimefm.evaluate.score_tables import markdown
from dimefm.evaluate.zero_shot import PROTOCOL, zero_shot
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import (
    UNREADABLE_AS_WRONG,
    ZERO_SHOT,
    Failure,
    Result,
    Scores,
    write_scores,
)
from dimefm.runtime import console

TITLE = "Scores"


def evaluate_tasks(
    encoder: Encoder,
    root: Path,
    out: Path,
    plan: Plan,
    names: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    metric: str | None = None,
    decoder: str = "turbo",
    batch_size: int = 256,
    workers: int = 2,
    knowledge: Knowledge | None = None,
) -> Scores:
    """Score ``encoder`` on the tasks of ``plan`` and on the datasets below ``root``.

    Datasets are looked for, and listed as missing or failed, as in
    :func:`dimefm.evaluate.zero_shot.elevater`. With ``knowledge``, prompts have the knowledge of
    their classes, also those that the toolkit's heads start from. A task that fails is listed with
    its dataset; the other tasks are scored. ``out`` keeps ``scores.json``, ``report.md``, the
    embeddings and the predictions; the files are written again after each dataset.

    Returns the scores. Raises DataError when no dataset is found, nothing can be scored, or ``out``
    cannot be written, and ModelError when zero-shot is asked of an encoder without a text tower, or
    fine-tuning of a tower that cannot be trained.
    """
    if plan.zero_shot:
        encoder.require_text()
    if plan.fine_tune:
        finetune.refuse_untrainable(encoder)
    check_metric(metric)
    job = _Job(encoder, plan, whole_suite=names is None, metric=metric, knowledge=knowledge)
    datasets, job.missing, job.failed = found_or_failed(root, names, layout)
    if names is None:
        note_own_folders(root)
    settings = settings_of(batch_size, workers, decoder)
    scores = job.run(datasets, out, settings)
    if scores is None:
        raise none_scored(job.failed, root, out)
    return scores


@dataclass
class _Job:
    """An encoder that is scored on one dataset after the other, and the results so far."""

    encoder: Encoder
    plan: Plan
    whole_suite: bool
    metric: str | None
    knowledge: Knowledge | None = None
    missing: Sequence[str] = ()
    failed: list[Failure] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def add_failure(self, name: str, reason: str) -> None:
        """List a dataset, or a task on it, as failed."""
        self.failed.append(Failure(name, reason))

    def run(self, datasets: list[Dataset], out: Path, settings: Settings) -> Scores | None:
        """Score the datasets and return the scores, None when there are none."""
        scores = None
        with feature_store(out) as store:
            files = PredictionFiles(out)
            remove_others(out, self.encoder.card.weights_sha256)
            started = time.perf_counter()
            while datasets:
                dataset = datasets.pop(0)
                _DatasetJob(self, dataset, store, settings, out, files).run()
                if not self.results:
                    continue
                pending = [later.benchmark.name for later in datasets]
                scores = self.scores(pending, round(time.perf_counter() - started, 3))
                write_scores(out, scores, markdown(scores, TITLE))
        return scores

    def scores(self, pending: Sequence[str], seconds: float) -> Scores:
        """Return the results so far with what is known of the encoder and the other datasets."""
        tasks = self.plan.tasks()
        return Scores(
            model=self.encoder.card.name,
            weights_sha256=self.encoder.card.weights_sha256,
            protocol=_protocol_line(self.plan, self.knowledge),
            results=tuple(self.results),
            encoder=facts(self.encoder, measure=not pending),
            summary=self._summary(tasks),
            missing=self.missing,
            failed=tuple(self.failed),
            pending=pending,
            seconds=seconds,
            settings={
                "tasks": [task.name for task in tasks],
                "protocol": self.plan.protocol,
                "seeds": list(self.plan.seeds),
                "metric": self.metric,
            },
        )

    def _summary(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Return the mean of each task over the datasets, as the zero-shot mean is taken."""
        suite_names = suite()
        summary = {}
        for task in tasks:
            of_task = [result for result in self.results if result.task == task.name]
            in_suite = [result for result in of_task if result.dataset in suite_names]
            counted = in_suite if self.whole_suite and in_suite else of_task
            if not counted:
                continue
            complete = self.whole_suite and len(in_suite) == ELEVATER_SETS and self.metric is None
            mean_name = "ELEVATER average" if complete else f"mean of {len(counted)}"
            values = [result.value for result in counted]
            summary[f"{task.name}, {mean_name}"] = float(np.mean(values))
        return summary


def _protocol_line(plan: Plan, knowledge: Knowledge | None) -> str:
    parts = [PROTOCOL] if plan.zero_shot else []
    if plan.linear_probe or plan.few_shot:
        parts.append(f"probes by protocol {plan.protocol}")
    if plan.fine_tune:
        parts.append("fine-tuning chosen by validation images")
    if knowledge is not None:
        parts.append(knowledge.describe())
    return "; ".join(parts)


@dataclass
class _DatasetJob:
    """The tasks of one dataset."""

    job: _Job
    dataset: Dataset
    store: Path
    settings: Settings
    out: Path
    files: PredictionFiles

    def run(self) -> None:
        """Score every task that can be scored; list the others as failed."""
        try:
            self.dataset = with_metric(self.dataset, self.job.metric)
            self.dataset = with_knowledge(self.dataset, self.job.knowledge)
        except DataError as error:
            self.job.add_failure(self.dataset.benchmark.name, str(error))
            return
        tasks = self.job.plan.tasks()
        trained = [task for task in tasks if task.kind != ZERO_SHOT]
        if len(trained) < len(tasks):
            with self._listing_failures(ZERO_SHOT if trained else ""):
                self._zero_shot()
        if not trained:
            return
        names = ", ".join(task.name for task in trained)
        data = None
        with self._listing_failures(names if len(tasks) > len(trained) else ""):
            data = self._data()
        if data is None:
            return
        for task in trained:
            with self._listing_failures(task.name if len(tasks) > 1 else ""):
                self._trained(task, data)

    @contextlib.contextmanager
    def _listing_failures(self, what: str) -> Iterator[None]:
        """List the dataset as failed, with the tasks that could not be scored."""
        try:
            with dataset_guard(self.dataset.folder):
                yield
        except (DataError, CacheError) as error:
            reason = f"{what}: {error}" if what else str(error)
            self.job.add_failure(self.dataset.benchmark.name, reason)

    def _zero_shot(self) -> None:
        result, predictions = zero_shot(self.job.encoder, self.dataset, self.store, self.settings)
        self.job.results.append(result)
        self.files.add(predictions)
        keep(self.out, of_zero_shot(predictions, result.task), self.job.encoder.card)

    def _data(self) -> ProbeData:
        return load_data(
            self.job.encoder,
            self.dataset,
            self.store,
            self.settings,
            with_val=self.job.plan.protocol != "elevater" or self.job.plan.fine_tune,
        )

    def _trained(self, task: Task, data: ProbeData) -> None:
        """Run a task with each seed, and keep the mean score and the predictions."""
        seeds = self.job.plan.seeds_of(task)
        outcomes = []
        for seed in seeds:
            console.detail(f"{data.benchmark.name}: {task.name}, seed {seed}")
            outcomes.append(self._outcome(task, data, seed))
        result = _result(task, data, self.dataset.note, seeds, outcomes)
        self.job.results.append(with_split_sizes(result, self.dataset))
        test = data.test
        first = outcomes[0].probabilities
        predictions = Predictions(data.benchmark, test.rows, test.labels, first, test.readable)
        parameters = [outcome.details["trainable_parameters"] for outcome in outcomes]
        kept = with_seeds(
            predictions,
            task.name,
            probabilities=np.stack([outcome.probabilities for outcome in outcomes]),
            seeds=seeds,
            trainable_parameters=parameters,
            shots=task.kept_shots,
        )
        protocol = str(outcomes[0].details.get("protocol", ""))
        keep(self.out, kept, self.job.encoder.card, protocol=protocol)

    def _outcome(self, task: Task, data: ProbeData, seed: int) -> ProbeOutcome:
        """Return what a task gives with one seed."""
        benchmark = data.benchmark
        train = data.train.features
        per_class = task.images_per_class()
        if per_class is None:
            places = np.arange(len(train))
        else:
            places = sample_few_shot_subset(train.labels, per_class, seed)
        if task.kind == FINE_TUNING:
            return self._tuned(task, data, places, seed)
        protocol = PROTOCOLS[self.job.plan.protocol]
        return protocol(
            train.take(places),
            data.test.features,
            data.start,
            benchmark.metric,
            benchmark.multilabel,
            seed,
            n_classes=len(benchmark.classes),
            shots=task.shots,
            device=str(self.job.encoder.device),
            validation=None if data.val is None else data.val.features,
        )

    def _tuned(self, task: Task, data: ProbeData, places: np.ndarray, seed: int) -> ProbeOutcome:
        """Return what fine-tuning on the training images at ``places`` gives with one seed."""
        plan = self.job.plan
        return finetune.run(
            self.job.encoder,
            data,
            places,
            seed,
            self.settings,
            shots=task.shots,
            options=finetune.Options(plan.fine_tune_epochs, plan.tower_rate),
        )


def _result(
    task: Task, data: ProbeData, note: str, seeds: Sequence[int], outcomes: Sequence[ProbeOutcome]
) -> Result:
    """Return the mean over the seeds, with the score and the details of each seed."""
    benchmark = data.benchmark
    labels = data.test.features.labels
    values = []
    per_seed: list[dict[str, Any]] = []
    for seed, outcome in zip(seeds, outcomes, strict=True):
        value = METRICS[benchmark.metric](outcome.probabilities, labels)
        values.append(value)
        per_seed.append({"seed": seed, "value": float(value), **outcome.details})
    metrics = {benchmark.metric: float(np.mean(values))}
    if all(LAST_EPOCH in entry for entry in per_seed):
        last_values = [entry[LAST_EPOCH] for entry in per_seed]
        metrics[f"{benchmark.metric}, {LAST_EPOCH}"] = float(np.mean(last_values))
    details: dict[str, Any] = {
        "classes": len(benchmark.classes),
        "train_images": len(data.train.features),
        "unreadable_train_images": data.train.unreadable,
        "seeds": per_seed,
    }
    with contextlib.suppress(DataError):  # too few images of a class
        details["interval"] = _interval(values, outcomes[0], labels, benchmark.metric).to_json()
    if data.test.unreadable:
        as_wrong = _as_wrong(data, outcomes)
        if as_wrong is not None:
            details[UNREADABLE_AS_WRONG] = as_wrong
    return Result(
        task=task.name,
        dataset=benchmark.name,
        metrics=metrics,
        main_metric=benchmark.metric,
        samples=len(labels),
        unreadable=data.test.unreadable,
        chance=chance(benchmark.metric, len(benchmark.classes), labels),
        note=note,
        details=details,
    )


def _interval(
    values: Sequence[float], outcome: ProbeOutcome, labels: np.ndarray, metric: str
) -> Interval:
    """Return the interval of the score: over the seeds, or over the test images of one seed."""
    if len(values) > 1:
        return over_seeds(values)
    return bootstrap(outcome.probabilities, labels, metric)


def _as_wrong(data: ProbeData, outcomes: Sequence[ProbeOutcome]) -> float | None:
    """Return the mean score with unreadable images as wrong answers, None if there is none."""
    test = data.test
    metric = data.benchmark.metric
    values = []
    for outcome in outcomes:
        value = with_unreadable_as_wrong(metric, outcome.probabilities, test.labels, test.readable)
        if value is None:
            return None
        values.append(value)
    return float(np.mean(values))
