"""The verb ``evaluate``: extract with the encoder, then a pure function of the features.

Features of an encoder over a dataset are kept under its fingerprint, so a second evaluation reads
them back; its tokens are not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.data import Rows
from dimefm.errors import CacheError, DataError
from dimefm.evaluate import zero_shot_tokens
from dimefm.evaluate.benchmark import ELEVATER_SETS, Benchmark, prompts, suite
from dimefm.evaluate.classifier import class_weights, probabilities
from dimefm.evaluate.datasets.layouts import Dataset, find
from dimefm.evaluate.metrics import METRICS, chance
from dimefm.evaluate.reports import markdown
from dimefm.extract.extract import Settings, extract
from dimefm.models.encoder import Encoder
from dimefm.models.filip import TokenMaps
from dimefm.models.open_clip import transform_of
from dimefm.runtime.versions import libraries
from dimefm.storage.files import sha256_keys, to_json, write_text

SCORES, REPORT = "scores.json", "report.md"
PROTOCOL = "ELEVATER zero-shot: prompts normalised, averaged, normalised; softmax at scale 100"


@dataclass(frozen=True)
class Score:
    """Zero-shot result on one dataset; ``value`` and ``chance`` are in 0..1, ``images`` were
    scored.
    """

    dataset: str
    metric: str
    value: float
    chance: float | None
    images: int
    unreadable: int
    classes: int
    templates: int
    note: str


def elevater(
    encoder: Encoder,
    root: Path,
    out: Path,
    names: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    batch_size: int = 256,
    workers: int = 2,
    maps: TokenMaps | None = None,
    on_score: Callable[[Score], None] = lambda score: None,
) -> dict:
    """Score ``encoder`` zero-shot on the datasets below ``root``; write ``out/scores.json`` and
    ``out/report.md``.

    Images and prompts are compared by their rows or, with ``maps``, by their tokens. Without
    ``names`` every folder that a card claims is scored; of the 20 ELEVATER sets, those without a
    folder are listed as missing, and the mean is over these sets only where one of them is scored.
    A dataset that cannot be read is listed as failed with its reason. Both files are written anew
    after each dataset (``pending`` names those still to come). Returns what ``scores.json`` holds.
    Raises DataError when no dataset is found, none can be scored, or ``out`` cannot be written.
    """
    failed: list[dict] = []

    def fail(name: str, error: Exception) -> None:
        failed.append({"dataset": name, "reason": str(error)})

    datasets, missing = find(root, names, layout=layout, every_card=True, on_failure=fail)
    if not datasets and not failed:
        raise DataError(
            f"{root}: none of the datasets asked for is here; expected one folder per dataset"
        )
    _make(out)
    started = time.perf_counter()
    settings = Settings(dtype="float32", batch_size=batch_size, workers=workers)
    scores: list[Score] = []
    result: dict = {}
    for done, dataset in enumerate(datasets, start=1):
        try:
            scores.append(zero_shot(encoder, dataset, out / "features", settings, maps))
        except (DataError, CacheError, OSError) as error:
            fail(dataset.benchmark.name, error)
        else:
            on_score(scores[-1])
        pending = [later.benchmark.name for later in datasets[done:]]
        lists = {"missing": missing, "failed": failed, "pending": pending}
        if scores:
            seconds = round(time.perf_counter() - started, 3)
            result = _result(encoder, scores, lists, seconds, whole_suite=names is None, maps=maps)
            write_text(out / SCORES, to_json(result))
            write_text(out / REPORT, markdown(result))
    if not scores:
        reasons = "; ".join(f"{each['dataset']}: {each['reason']}" for each in failed)
        count = (
            "the one dataset here could not"
            if len(failed) == 1
            else f"none of the {len(failed)} datasets here could"
        )
        raise DataError(f"{count} be scored: {reasons}")
    return result


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error


def _result(
    encoder: Encoder,
    scores: list[Score],
    lists: dict,
    seconds: float,
    *,
    whole_suite: bool,
    maps: TokenMaps | None,
) -> dict:
    """Return what ``scores.json`` holds; ``lists`` are the names of datasets that are missing,
    failed or pending.
    """
    of_suite = suite()
    in_suite = [score for score in scores if score.dataset in of_suite]
    counted = in_suite if whole_suite and in_suite else scores
    return {
        "model": encoder.card.name,
        "weights_sha256": encoder.card.weights_sha256,
        "image_parameters": encoder.image_parameters,
        "text_parameters": encoder.text_parameters,
        "by": "rows" if maps is None else "tokens",
        "protocol": (
            PROTOCOL if maps is None else f"{zero_shot_tokens.PROTOCOL}; padding {maps.padding}"
        ),
        "scores": [dataclasses.asdict(score) for score in scores],
        "mean": float(np.mean([score.value for score in counted])),
        "not_in_mean": [score.dataset for score in scores if score not in counted],
        "is_elevater_average": maps is None and whole_suite and len(in_suite) == ELEVATER_SETS,
        **lists,
        "seconds": seconds,
        "libraries": libraries(),
    }


def zero_shot(
    encoder: Encoder,
    dataset: Dataset,
    store: Path,
    settings: Settings,
    maps: TokenMaps | None = None,
) -> Score:
    """Return the zero-shot score of one dataset, by tokens with ``maps``, else by rows, kept in
    (and taken from) ``store``.

    Source of the protocol by rows: ELEVATER toolkit, evaluation/feature.py:546-575 and
    clip_zeroshot_evaluator.py:17-20; by tokens: FILIP as released with DeCLIP,
    prototype/solver/filip_solver.py:882-944.
    """
    benchmark = dataset.benchmark
    rows, labels, _ = dataset.rows("test")
    if maps is None:
        images, good = image_features(encoder, benchmark, rows, store, settings)
        found = probabilities(images, prompt_weights(encoder, benchmark, store, settings))
    else:
        found, good = zero_shot_tokens.probabilities(
            _for_benchmark(encoder, benchmark), maps, benchmark, rows, settings
        )
    labels = labels[good]
    value = METRICS[benchmark.metric](found, labels)
    return Score(
        dataset=benchmark.name,
        metric=benchmark.metric,
        value=float(value),
        chance=chance(benchmark.metric, len(benchmark.classes), labels),
        images=len(labels),
        unreadable=len(rows) - len(labels),
        classes=len(benchmark.classes),
        templates=len(benchmark.templates),
        note=dataset.note,
    )


def _for_benchmark(encoder: Encoder, benchmark: Benchmark) -> Encoder:
    """Return the encoder as this benchmark wants images prepared: without cropping for KITTI."""
    if benchmark.crop:
        return encoder
    preprocess = {**encoder.image_preprocess, "resize_mode": "squash"}
    card = dataclasses.replace(encoder.card, preprocess=preprocess)
    return dataclasses.replace(encoder, card=card, preprocess=transform_of(preprocess))


def image_features(
    encoder: Encoder, benchmark: Benchmark, rows: Rows, store: Path, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Return (unit rows [n, D], numbers of the rows that could be read [n]) of a benchmark's
    images, kept in ``store``.
    """
    encoder = _for_benchmark(encoder, benchmark)
    what = sha256_keys(
        [f"{shard.name}:{shard.digest()}:{sha256_keys(shard.keys())}" for shard in rows.shards]
    )
    folder = store / _fingerprint(encoder) / f"{benchmark.name}-{what[:12]}"
    manifest = extract(encoder, rows, "image", folder, settings).manifest
    starts = np.cumsum([0] + [shard.source_rows for shard in manifest.shards])
    bad = [
        start + row
        for start, shard in zip(starts, manifest.shards, strict=False)
        for row in shard.bad
    ]
    return FeatureCache(folder)[:], np.setdiff1d(np.arange(len(rows)), bad)


def prompt_weights(
    encoder: Encoder, benchmark: Benchmark, store: Path, settings: Settings
) -> np.ndarray:
    """Return class weights [C, D], from the store when these prompts were encoded before."""
    filled = prompts(benchmark)
    digest = hashlib.sha256(json.dumps(filled).encode()).hexdigest()
    path = store / _fingerprint(encoder) / f"prompts-{digest[:16]}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    flat = [sentence for row in filled for sentence in row]
    parts = range(0, len(flat), settings.batch_size)
    encoded = [
        encoder.encode_text(encoder.tokenize(flat[i : i + settings.batch_size])[0]).cpu().numpy()
        for i in parts
    ]
    embeddings = np.concatenate(encoded).reshape(len(filled), -1, encoder.card.dim)
    weights = class_weights(embeddings)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, weights, allow_pickle=False)
    part.replace(path)
    return weights


def _fingerprint(encoder: Encoder) -> str:
    identity = json.dumps([encoder.card.identity(), encoder.precision], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
