"""Score an encoder zero-shot on ImageNet and its variants, and its robustness."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dimefm.errors import CacheError, DataError
from dimefm.evaluate import profiling
from dimefm.evaluate.benchmark import Benchmark, card_for, suite
from dimefm.evaluate.datasets.layouts import Dataset, find
from dimefm.evaluate.features import image_features
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.imagenet import report
from dimefm.evaluate.imagenet.conventions import MASKED, OWN, Classifiers, named
from dimefm.evaluate.imagenet.figure import FIGURE, draw
from dimefm.evaluate.imagenet.robustness import IMAGENET, VARIANTS, Robustness, robustness
from dimefm.evaluate.metrics import accuracy
from dimefm.evaluate.predictions import PredictionFiles, Predictions
from dimefm.evaluate.preparing import feature_store
from dimefm.evaluate.result import classification_result
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import Failure, Result, Scores, write_scores
from dimefm.runtime.text import first_few

SUITE = "imagenet"
AVERAGE = "average robustness"
CONVENTION_TEXTS = {
    OWN: "each dataset's own class names",
    MASKED: "the names of ImageNet's 1000 classes, those of other classes left out",
}
SHOWN = 6
"""Datasets that a message lists at most."""

TOP = 5

OnResult = Callable[[Result], None]


@dataclass(frozen=True)
class Reference:
    """The images of ImageNet-1k: embeddings [n, D], class numbers [n], and their benchmark."""

    benchmark: Benchmark
    images: np.ndarray
    labels: np.ndarray


def evaluate(
    encoder: Encoder,
    root: str | Path,
    out: Path,
    names: Sequence[str] | None = None,
    *,
    convention: str = OWN,
    layout: str | None = None,
    settings: Settings,
    on_result: OnResult | None = None,
) -> Scores:
    """Score ``encoder`` zero-shot on ImageNet and its variants below ``root``; keep it in ``out``.

    ``names`` are benchmarks or folders; without them all six datasets are looked for. Effective
    robustness needs ImageNet-1k among them. ``out`` gets ``scores.json``, ``report.md``,
    ``per_class.csv``, ``wrong.jsonl``, ``robustness.png`` and the embeddings. A dataset that cannot
    be read is listed as failed with its reason.

    Raises ModelError for a model without a text tower, and DataError when no dataset is found, one
    of ``names`` is no variant of ImageNet, none can be scored, or ``out`` cannot be written.
    """
    encoder.require_text()
    run = _Run(encoder, convention, settings)
    datasets = run.datasets(root, names, layout)
    with feature_store(out) as store:
        files = PredictionFiles(out)
        classifiers = Classifiers(encoder, store, settings)
        while datasets:
            dataset = datasets.pop(0)
            try:
                with dataset_guard(dataset.folder):
                    result, predictions = run.score(dataset, classifiers, store)
            except (DataError, CacheError) as error:
                run.add_failure(dataset.benchmark.name, error)
                continue
            files.add(predictions)
            if on_result is not None:
                on_result(result)
            pending = [later.benchmark.name for later in datasets]
            scores = run.scores(pending)
            write_scores(out, scores, report.markdown(scores, report.places_of(run.results)))
        if not run.results:
            raise _none_scored(run.failed)
        return run.finish(out)


@dataclass
class _Run:
    """An encoder that is scored on one dataset after the other, and what is known so far."""

    encoder: Encoder
    convention: str
    settings: Settings
    reference: Reference | None = None
    missing: Sequence[str] = ()
    results: list[Result] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def add_failure(self, name: str, error: Exception) -> None:
        """List a dataset as failed."""
        self.failed.append(Failure(name, str(error)))

    def datasets(
        self, root: str | Path, names: Sequence[str] | None, layout: str | None
    ) -> list[Dataset]:
        """Return the datasets that are found, ImageNet-1k first."""
        wanted = suite(SUITE) if names is None else names
        found, self.missing = find(root, wanted, layout=layout, on_failure=self.add_failure)
        for dataset in found:
            _refuse_others(dataset)
        if not found and not self.failed:
            place = "that holds them"
            if card_for(Path(root).resolve().name) in suite(SUITE):
                place = "above this one, which is a dataset itself"
            raise DataError(
                f"{root}: holds none of {first_few(wanted, SHOWN)}; expected a folder for each,"
                f" called like it. Fix: give the folder {place}, or rename them"
            )
        return sorted(found, key=lambda dataset: dataset.card != IMAGENET)

    def score(
        self, dataset: Dataset, classifiers: Classifiers, store: Path
    ) -> tuple[Result, Predictions]:
        """Return the result of one dataset, and the predictions that it is made of."""
        benchmark = dataset.benchmark
        rows, labels, _ = dataset.rows("test")
        images, readable = image_features(self.encoder, benchmark, rows, store, self.settings)
        probabilities = classifiers.probabilities(images, benchmark, self.convention)
        shown = named(benchmark, self.convention)
        result = classification_result(shown, probabilities, labels, readable, note=dataset.note)
        if dataset.card == IMAGENET:
            self.reference = Reference(benchmark, images, labels[readable])
        place = self._place(dataset, result, classifiers)
        result = self._with_details(result, probabilities, labels[readable], place)
        self.results.append(result)
        return result, Predictions(shown, rows, labels, probabilities, readable)

    def _place(
        self, dataset: Dataset, result: Result, classifiers: Classifiers
    ) -> Robustness | None:
        """Return where the encoder stands on a variant, None without ImageNet-1k."""
        if self.reference is None or dataset.card not in VARIANTS:
            return None
        imagenet = imagenet_accuracy(
            self.reference, dataset.benchmark, classifiers, self.convention
        )
        return None if imagenet is None else robustness(dataset.card, imagenet, result.value)

    def _with_details(
        self,
        result: Result,
        probabilities: np.ndarray,
        labels: np.ndarray,
        place: Robustness | None,
    ) -> Result:
        """Return a result with its top-5 accuracy, convention and robustness."""
        metrics = {**result.metrics, f"top_{TOP}": top_accuracy(probabilities, labels)}
        details = {**result.details, "convention": self.convention}
        if place is not None:
            details["robustness"] = place.to_json()
        return dataclasses.replace(result, metrics=metrics, details=details)

    def scores(self, pending: Sequence[str] = (), *, is_last: bool = False) -> Scores:
        """Return the results so far with what is known of the encoder and the other datasets.

        The encoder's speed is measured for the last ones only.
        """
        values = [result.value for result in self.results if result.dataset in VARIANTS]
        summary = {}
        if len(values) == len(VARIANTS):
            summary[AVERAGE] = float(np.mean(values))
        elif values:
            summary[f"mean of {len(values)} of {len(VARIANTS)} variants"] = float(np.mean(values))
        return Scores(
            model=self.encoder.card.name,
            weights_sha256=self.encoder.card.weights_sha256,
            protocol=(
                "Zero-shot: prompts normalised, averaged, normalised; convention"
                f" {self.convention}: {CONVENTION_TEXTS[self.convention]}"
            ),
            results=tuple(self.results),
            encoder=profiling.facts(self.encoder, measure=is_last),
            summary=summary,
            missing=tuple(self.missing),
            failed=tuple(self.failed),
            pending=tuple(pending),
            seconds=round(time.perf_counter() - self.started, 3),
            settings={"convention": self.convention},
        )

    def finish(self, out: Path) -> Scores:
        """Write the files for the last time, and the figure where there is something to draw."""
        scores = self.scores(is_last=True)
        places = report.places_of(self.results)
        write_scores(out, scores, report.markdown(scores, places))
        if places:
            draw(places, scores.model, out / FIGURE)
        else:
            (out / FIGURE).unlink(missing_ok=True)
        return scores


def imagenet_accuracy(
    reference: Reference, benchmark: Benchmark, classifiers: Classifiers, convention: str
) -> float | None:
    """Return the accuracy on the images of ImageNet-1k that are of a benchmark's classes.

    They are classified among these classes, with the benchmark's own classifier. None: there is no
    such image.
    """
    class_of_id: dict[str, int] = {}
    for number, ids in enumerate(benchmark.wnids):
        for identity in ids:
            class_of_id[identity] = number
    class_of_label = np.array([class_of_id.get(ids[0], -1) for ids in reference.benchmark.wnids])
    labels = class_of_label[reference.labels]
    is_inside = labels >= 0
    if not is_inside.any():
        return None
    probabilities = classifiers.probabilities(reference.images[is_inside], benchmark, convention)
    return accuracy(probabilities, labels[is_inside])


def top_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows [n, C] whose label is among their five most probable classes."""
    best = np.argpartition(-probabilities, TOP - 1, axis=1)[:, :TOP]
    return float(np.mean((best == labels[:, None]).any(axis=1)))


def _refuse_others(dataset: Dataset) -> None:
    """Raise DataError for a dataset that is no variant of ImageNet, or has other classes."""
    if dataset.card not in suite(SUITE):
        raise DataError(
            f"{dataset.folder}: is none of {first_few(suite(SUITE), SHOWN)}. Fix: remove it from"
            " --datasets, and score it with dimefm eval elevater"
        )
    if not dataset.benchmark.wnids:
        raise DataError(
            f"{dataset.folder}: its classnames.txt lists other classes than those of"
            f" {dataset.card}. Fix: remove it, or score the folder with dimefm eval folder"
        )


def _none_scored(failed: Sequence[Failure]) -> DataError:
    first = failed[0]
    others = f" ({len(failed) - 1} others failed, too)" if len(failed) > 1 else ""
    return DataError(f"no dataset could be scored{others}: {first.dataset}: {first.reason}")
