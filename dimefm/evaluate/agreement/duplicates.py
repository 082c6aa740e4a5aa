"""Near-duplicates of test images among the images that a model was trained on."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.cache.manifest import differences
from dimefm.data import Rows
from dimefm.data.views.patch_tokens import expect_rows
from dimefm.errors import CacheError, DataError
from dimefm.evaluate import profiling
from dimefm.evaluate.agreement.duplicate_tables import markdown
from dimefm.evaluate.agreement.nearest import KEPT, Matches, close_rows
from dimefm.evaluate.classifier import probabilities
from dimefm.evaluate.datasets.layouts import Dataset
from dimefm.evaluate.features import image_features, prompt_weights, row_features
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.preparing import feature_store, found_or_failed, none_scored
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import Failure, Result, Scores, write_scores
from dimefm.runtime.printable import one_line
from dimefm.storage.files import write_text

TASK = "near-duplicates"
SHARE = "near-duplicates"
DUPLICATES = "duplicates.csv"
THRESHOLD = 0.95
WATCHED = (0.90, 0.95, 0.98, 0.99)
"""Cosines at which the test images are counted, whatever the threshold."""

COLUMNS = ("dataset", "source", "key", "train_cache", "train_source", "train_key", "cosine")
PROTOCOL = (
    "Test images with a cosine of {} or more with a cached training image, both embedded by the"
    " encoder of the cache"
)


@dataclass(frozen=True)
class Choices:
    """Datasets below ``root`` (``names``, or all with a card), and when two images are close."""

    root: Path
    names: Sequence[str] | None = None
    layout: str | None = None
    threshold: float = THRESHOLD


@dataclass(frozen=True)
class Embedded:
    """A dataset whose test images were embedded: float32 [n, D], of the rows ``numbers`` [n]."""

    dataset: Dataset
    rows: Rows
    labels: np.ndarray
    images: np.ndarray
    numbers: np.ndarray


def near_duplicates(
    teacher: Encoder,
    model: Encoder,
    caches: Sequence[FeatureCache],
    choices: Choices,
    out: Path | None,
    settings: Settings,
) -> Scores:
    """Look for test images among the training images, and score ``model`` with and without them.

    ``teacher`` is the encoder of the ``caches``. The main metric of a result is the share of the
    test images that have a near-duplicate. A model without a text tower is not scored. With
    ``out``, that folder keeps ``scores.json``, ``report.md``, ``duplicates.csv`` and the
    embeddings. A dataset that cannot be scored is listed as failed.

    Raises CacheError when a cache was made by another encoder or holds no embeddings of images, and
    DataError when no dataset is found, none can be scored, or ``out`` cannot be written.
    """
    for cache in caches:
        check_cache(cache, teacher)
    datasets, missing, failed = found_or_failed(choices.root, choices.names, choices.layout)
    started = time.perf_counter()
    results: list[Result] = []
    pairs: list[tuple[Any, ...]] = []
    with feature_store(out) as store:
        embedded = _embed(teacher, datasets, store, settings, failed)
        matches = _search(embedded, caches, choices.threshold, quiet=not settings.progress)
        for part, match in zip(embedded, matches, strict=True):
            try:
                with dataset_guard(part.dataset.folder):
                    result = _result(model, part, match, store, settings)
            except (DataError, CacheError) as error:
                failed.append(Failure(part.dataset.benchmark.name, str(error)))
                continue
            results.append(result)
            pairs += _pairs(part, match, caches)
        if not results:
            raise none_scored(failed, choices.root, out or choices.root)
        scores = Scores(
            model=model.card.name,
            weights_sha256=model.card.weights_sha256,
            protocol=PROTOCOL.format(choices.threshold),
            results=tuple(results),
            encoder=profiling.facts(model),
            missing=tuple(missing),
            failed=tuple(failed),
            seconds=round(time.perf_counter() - started, 3),
            settings=_settings(teacher, caches, choices),
        )
        if out is not None:
            write_text(out / DUPLICATES, csv_text(pairs))
            write_scores(out, scores, markdown(scores))
    return scores


def check_cache(cache: FeatureCache, teacher: Encoder) -> None:
    """Raise CacheError unless a cache holds embeddings of images that ``teacher`` made."""
    manifest = cache.manifest
    if manifest.kind != "image":
        raise CacheError(
            f"{cache.store}: holds {manifest.kind} features, expected image features. Fix: give the"
            " cache of images"
        )
    expect_rows((cache,))
    card = teacher.card
    if card.shared_towers.get("image") == manifest.encoder.identity():
        return
    different = differences(manifest.encoder.identity(), card.identity())
    if different:
        raise CacheError(
            f"{cache.store}: was made by another encoder than {card.name}"
            f" ({'; '.join(different)[:200]}). Fix: give the encoder of the cache,"
            f" {manifest.encoder.name}, as --teacher"
        )


def _settings(teacher: Encoder, caches: Sequence[FeatureCache], choices: Choices) -> dict[str, Any]:
    """Return the choices that decide the numbers."""
    described = []
    for cache in caches:
        described.append(
            {
                "path": str(cache.store),
                "fingerprint": cache.manifest.fingerprint,
                "rows": len(cache),
                "crops": cache.manifest.how.get("views") is not None,
            }
        )
    return {
        "threshold": choices.threshold,
        "teacher": teacher.card.name,
        "teacher_sha256": teacher.card.weights_sha256,
        "caches": described,
    }


def _embed(
    teacher: Encoder,
    datasets: Sequence[Dataset],
    store: Path,
    settings: Settings,
    failed: list[Failure],
) -> list[Embedded]:
    """Return the datasets with their embeddings, prepared as the images of the caches were."""
    embedded = []
    for dataset in datasets:
        name = dataset.benchmark.name
        try:
            with dataset_guard(dataset.folder):
                rows, labels, _ = dataset.rows("test")
                images, numbers = row_features(teacher, name, rows, store, settings)
        except (DataError, CacheError) as error:
            failed.append(Failure(name, str(error)))
            continue
        embedded.append(Embedded(dataset, rows, labels, images, numbers))
    return embedded


def _search(
    embedded: Sequence[Embedded], caches: Sequence[FeatureCache], threshold: float, quiet: bool
) -> list[Matches]:
    """Return what is found for each dataset; the caches are read once for all of them."""
    if not embedded:
        return []
    every_image = np.concatenate([part.images for part in embedded])
    found = close_rows(every_image, caches, threshold, quiet=quiet)
    matches = []
    start = 0
    for part in embedded:
        end = start + len(part.images)
        matches.append(found.select(slice(start, end)))
        start = end
    return matches


def _result(
    model: Encoder, part: Embedded, match: Matches, store: Path, settings: Settings
) -> Result:
    """Return the result of one dataset."""
    benchmark = part.dataset.benchmark
    has_duplicate = match.counts > 0
    metrics = {SHARE: float(has_duplicate.mean())}
    details: dict[str, Any] = {
        "metric": benchmark.metric,
        "images_with_duplicate": int(has_duplicate.sum()),
        "pairs": int(match.counts.sum()),
        "images_by_cosine": _counted(match.nearest),
        "nearest": _quantiles(match.nearest),
    }
    if model.has_text:
        duplicated = part.numbers[has_duplicate]
        every, without, images = _scores(model, part, duplicated, store, settings)
        metrics[benchmark.metric] = every
        details["images_without"] = images
        if without is not None:
            metrics[f"{benchmark.metric} without near-duplicates"] = without
    return Result(
        task=TASK,
        dataset=benchmark.name,
        metrics=metrics,
        main_metric=SHARE,
        samples=len(part.numbers),
        unreadable=len(part.rows) - len(part.numbers),
        note=part.dataset.note,
        details=details,
    )


def _counted(nearest: np.ndarray) -> dict[str, int]:
    """Return how many test images have a cached image at each of the cosines ``WATCHED``."""
    counts = {}
    for cosine in WATCHED:
        counts[f"{cosine:.2f}"] = int((nearest >= np.float32(cosine)).sum())
    return counts


def _quantiles(nearest: np.ndarray) -> dict[str, float]:
    """Return quantiles of the cosine of the nearest cached image."""
    middle, high, highest = np.quantile(nearest, [0.5, 0.99, 1])
    return {"median": float(middle), "p99": float(high), "highest": float(highest)}


def _scores(
    model: Encoder, part: Embedded, duplicated: np.ndarray, store: Path, settings: Settings
) -> tuple[float, float | None, int]:
    """Return the zero-shot score of all images, that without the duplicated ones, and how many
    these are. The second is None where the other images have none.
    """
    benchmark = part.dataset.benchmark
    images, numbers = image_features(model, benchmark, part.rows, store, settings)
    weights = prompt_weights(model, benchmark, store, settings)
    scores = probabilities(images, weights)
    labels = part.labels[numbers]
    metric = METRICS[benchmark.metric]
    kept = ~np.isin(numbers, duplicated)
    without = None
    if kept.any():
        try:
            without = float(metric(scores[kept], labels[kept]))
        except DataError:  # one class is left, and ROC AUC needs two
            without = None
    return float(metric(scores, labels)), without, int(kept.sum())


def _pairs(part: Embedded, match: Matches, caches: Sequence[FeatureCache]) -> list[tuple[Any, ...]]:
    """Return a row of ``COLUMNS`` for each kept pair of a dataset."""
    keys: dict[int, Sequence[str]] = {}
    pairs = []
    for place in np.flatnonzero(match.counts):
        number, row = part.rows.locate(int(part.numbers[place]))
        shard = part.rows.shards[number]
        if number not in keys:
            keys = {number: shard.keys()}
        for kept in range(min(KEPT, int(match.counts[place]))):
            found = match.places[place, kept]
            cosine = round(float(match.cosines[place, kept]), 6)
            pairs.append(
                (
                    part.dataset.benchmark.name,
                    shard.name,
                    keys[number][row],
                    str(caches[found.cache].store),
                    found.source,
                    found.key,
                    cosine,
                )
            )
    return pairs


def csv_text(pairs: Sequence[tuple[Any, ...]]) -> str:
    """Return pairs as comma-separated values with a head."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for *names, cosine in pairs:
        writer.writerow((*(one_line(name) for name in names), cosine))
    return file.getvalue()
