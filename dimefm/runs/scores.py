"""Scores of an encoder, and the file ``scores.json`` that keeps them.

Every evaluation returns a :class:`Result`. The file has three forms, which differ in their keys:
one for zero-shot classification (:class:`ZeroShotScores`), one for retrieval between two caches
(:class:`RetrievalScores`), and one for every other evaluation (:class:`Scores`).
:func:`read_results` reads all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

from dimefm.errors import DataError
from dimefm.runtime.versions import libraries
from dimefm.storage.files import to_json, write_report, write_text
from dimefm.storage.small_files import read_json

SCORES = "scores.json"
REPORT = "report.md"
DEPTH = 3
"""Folders below a named one in which scores are looked for."""

SCORE_MARKS = (SCORES, "features", ".eval.lock", "run.json")
"""What a folder has that holds scores, the beginning of an evaluation, or the model's run."""

ZERO_SHOT = "zero-shot"
ZERO_SHOT_BY_TOKENS = "zero-shot by tokens"
RETRIEVAL = "retrieval"
RETRIEVAL_FIRST = "retrieval, first caption"
"""Task of CLIP-KD's protocol, in which an image has only its first caption."""

UNREADABLE_AS_WRONG = "unreadable_as_wrong"
"""Key of ``details``: the main metric with unreadable images as wrong answers, 0 to 1."""

SPLIT_SIZES = "splits"
"""Key of ``details``: images on disk and published ones of each split that is there."""

OPTIONAL_DETAILS = (UNREADABLE_AS_WRONG, SPLIT_SIZES)
"""Keys that a zero-shot entry has where they apply; entries of before have none of them."""


@dataclass(frozen=True)
class Result:
    """Scores of one encoder on one dataset.

    ``task`` is ``"zero-shot"``, ``"zero-shot by tokens"``, ``"retrieval"`` or that of another
    evaluation, such as ``"linear probe"``. ``metrics`` maps the
    name of each metric to its value, 0 to 1; ``main_metric`` is the one to quote. ``samples``
    images were scored and ``unreadable`` ones left out. ``chance`` is what random scores reach in
    the main metric, None if unknown. ``note`` says where the data differ from the published set.

    ``details`` depend on the task. Of images that could not be read, classification has the main
    metric with them as wrong answers, :data:`UNREADABLE_AS_WRONG`. Zero-shot: ``classes`` and
    ``templates``, both counts. Retrieval: ``directions`` (queries and candidates of each),
    ``split``, ``images`` and ``texts`` (fingerprint and rows of each cache, and how many of them
    have no partner).
    """

    task: str
    dataset: str
    metrics: Mapping[str, float]
    main_metric: str
    samples: int
    unreadable: int = 0
    chance: float | None = None
    note: str = ""
    details: Mapping = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Value of the main metric, 0 to 1."""
        return self.metrics[self.main_metric]


@dataclass(frozen=True)
class Failure:
    """A dataset that could not be scored, and the reason."""

    dataset: str
    reason: str


@dataclass(frozen=True)
class ZeroShotScores:
    """Zero-shot results of one encoder on several datasets.

    ``mean`` is over the results that are not listed in ``not_in_mean``, 0 to 1. ``missing`` and
    ``pending`` are names of datasets: without a folder, and still to be scored. ``metric`` is the
    one that was asked for in place of the cards', if any. ``encoder`` is what
    :func:`dimefm.evaluate.profiling.facts` says of the encoder and the machine.
    """

    model: str
    weights_sha256: str | None
    image_parameters: int
    text_parameters: int
    by_tokens: bool
    protocol: str
    results: Sequence[Result]
    mean: float
    not_in_mean: Sequence[str]
    is_elevater_average: bool
    missing: Sequence[str]
    failed: Sequence[Failure]
    pending: Sequence[str]
    seconds: float
    metric: str | None = None
    encoder: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=libraries)

    def to_json(self) -> dict:
        """Return what ``scores.json`` holds."""
        failed = [{"dataset": failure.dataset, "reason": failure.reason} for failure in self.failed]
        return {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "encoder": dict(self.encoder),
            "image_parameters": self.image_parameters,
            "text_parameters": self.text_parameters,
            "by": "tokens" if self.by_tokens else "rows",
            "protocol": self.protocol,
            "metric": self.metric,
            "scores": [_zero_shot_entry(result) for result in self.results],
            "mean": self.mean,
            "not_in_mean": list(self.not_in_mean),
            "is_elevater_average": self.is_elevater_average,
            "missing": list(self.missing),
            "failed": failed,
            "pending": list(self.pending),
            "seconds": self.seconds,
            "libraries": dict(self.libraries),
        }


def _zero_shot_entry(result: Result) -> dict:
    entry = {
        "dataset": result.dataset,
        "metric": result.main_metric,
        "value": result.value,
        "chance": result.chance,
        "images": result.samples,
        "unreadable": result.unreadable,
        "classes": result.details["classes"],
        "templates": result.details["templates"],
        "note": result.note,
    }
    for name in OPTIONAL_DETAILS:
        if name in result.details:
            entry[name] = result.details[name]
    return entry


@dataclass(frozen=True)
class RetrievalScores:
    """Retrieval result of one encoder; ``at`` are the K of recall at K."""

    model: str
    weights_sha256: str | None
    protocol: str
    at: Sequence[int]
    result: Result
    libraries: Mapping[str, str] = field(default_factory=libraries)

    def to_json(self) -> dict:
        """Return what ``scores.json`` holds."""
        details = self.result.details
        return {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "protocol": self.protocol,
            "split": details["split"],
            "images": details["images"],
            "texts": details["texts"],
            "at": list(self.at),
            "scores": [self._direction_entry(name) for name in details["directions"]],
            "libraries": dict(self.libraries),
        }

    def _direction_entry(self, direction: str) -> dict:
        sizes = self.result.details["directions"][direction]
        recall = tuple(self.result.metrics[recall_name(direction, k)] for k in self.at)
        return {
            "direction": direction,
            "recall": recall,
            "queries": sizes["queries"],
            "candidates": sizes["candidates"],
        }


@dataclass(frozen=True)
class Scores:
    """Results of one encoder on any number of datasets and tasks.

    ``encoder`` is what :func:`dimefm.evaluate.profiling.facts` says of the encoder and the machine.
    ``summary`` maps names of averages to their values, 0 to 1, such as ``"mean"``. ``missing``,
    ``failed`` and ``pending`` are as in :class:`ZeroShotScores`. ``settings`` are the choices that
    decide the numbers, such as seeds and shots.
    """

    model: str
    weights_sha256: str | None
    protocol: str
    results: Sequence[Result]
    encoder: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    missing: Sequence[str] = ()
    failed: Sequence[Failure] = ()
    pending: Sequence[str] = ()
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=libraries)

    def to_json(self) -> dict:
        """Return what ``scores.json`` holds."""
        failed = [{"dataset": failure.dataset, "reason": failure.reason} for failure in self.failed]
        return {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "encoder": dict(self.encoder),
            "protocol": self.protocol,
            "settings": dict(self.settings),
            "results": [_entry(result) for result in self.results],
            "summary": dict(self.summary),
            "missing": list(self.missing),
            "failed": failed,
            "pending": list(self.pending),
            "seconds": self.seconds,
            "libraries": dict(self.libraries),
        }


def _entry(result: Result) -> dict:
    return {
        "task": result.task,
        "dataset": result.dataset,
        "metrics": dict(result.metrics),
        "main_metric": result.main_metric,
        "samples": result.samples,
        "unreadable": result.unreadable,
        "chance": result.chance,
        "note": result.note,
        "details": dict(result.details),
    }


def recall_name(direction: str, k: int) -> str:
    """Return the name of the metric recall at ``k`` in one direction of retrieval."""
    return f"{direction} R@{k}"


def write_scores(out: Path, scores: ZeroShotScores | RetrievalScores | Scores, report: str) -> None:
    """Write ``out/scores.json`` and the Markdown ``report`` as ``out/report.md``."""
    write_text(out / SCORES, to_json(scores.to_json()))
    write_report(out / REPORT, report)


def read_content(path: Path) -> dict[str, Any]:
    """Return what a ``scores.json`` of any form holds; raise DataError when it cannot be read."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as scores ({error}). Fix: evaluate again, or leave it out"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: got JSON of the type {type(content).__name__}, expected an object. Fix:"
            " evaluate again, or leave it out"
        )
    return content


def files_below(folder: Path, depth: int = DEPTH) -> list[Path]:
    """Return the files ``scores.json`` in a folder and up to ``depth`` folders below it."""
    found: list[Path] = []
    for level in range(depth + 1):
        pattern = "/".join(["*"] * level + [SCORES])
        found += sorted(folder.glob(pattern))
    return found


def read_results(path: Path) -> list[Result]:
    """Return the results in a ``scores.json`` of any form; retrieval of two caches is one result.

    Raises DataError when the file cannot be read as scores.
    """
    try:
        content = read_json(path)
        if "results" in content:
            return [_result(entry) for entry in content["results"]]
        entries = content["scores"]
        if any("recall" in entry for entry in entries):
            return [_retrieval_result(content)]
        task = ZERO_SHOT_BY_TOKENS if content.get("by") == "tokens" else ZERO_SHOT
        return [_zero_shot_result(entry, task) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read as scores ({error!r}). Fix: evaluate again, or remove the file"
        ) from error


def _typed(value: Any, kind: type | UnionType, name: str) -> Any:
    """Return a value; raise TypeError when it is of another type than its name asks for."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"'{name}' is of the type {type(value).__name__}")
    return value


def _share(value: Any, name: str) -> float:
    """Return a score; raise an error unless it is a number from 0 to 1."""
    score = float(_typed(value, int | float, name))
    if not 0 <= score <= 1:
        raise ValueError(f"'{name}' is {score}, expected 0 to 1")
    return score


def _result(entry: dict) -> Result:
    """Return a result of the general form."""
    metrics = _typed(entry["metrics"], dict, "metrics")
    main_metric = _typed(entry["main_metric"], str, "main_metric")
    if main_metric not in metrics:
        raise ValueError(f"'metrics' lacks the main metric {main_metric}")
    chance = entry.get("chance")
    return Result(
        task=_typed(entry["task"], str, "task"),
        dataset=_typed(entry["dataset"], str, "dataset"),
        metrics={name: _share(value, name) for name, value in metrics.items()},
        main_metric=main_metric,
        samples=_typed(entry.get("samples", 0), int, "samples"),
        unreadable=_typed(entry.get("unreadable", 0), int, "unreadable"),
        chance=None if chance is None else _share(chance, "chance"),
        note=_typed(entry.get("note", ""), str, "note"),
        details=_typed(entry.get("details", {}), dict, "details"),
    )


def _zero_shot_result(entry: dict, task: str) -> Result:
    metric = _typed(entry.get("metric", "score"), str, "metric")
    chance = entry.get("chance")
    details = {"classes": entry.get("classes"), "templates": entry.get("templates")}
    if UNREADABLE_AS_WRONG in entry:
        details[UNREADABLE_AS_WRONG] = _share(entry[UNREADABLE_AS_WRONG], UNREADABLE_AS_WRONG)
    if SPLIT_SIZES in entry:
        details[SPLIT_SIZES] = _typed(entry[SPLIT_SIZES], dict, SPLIT_SIZES)
    return Result(
        task=task,
        dataset=_typed(entry["dataset"], str, "dataset"),
        metrics={metric: _share(entry["value"], "value")},
        main_metric=metric,
        samples=_typed(entry.get("images", 0), int, "images"),
        unreadable=_typed(entry.get("unreadable", 0), int, "unreadable"),
        chance=None if chance is None else _share(chance, "chance"),
        note=_typed(entry.get("note", ""), str, "note"),
        details=details,
    )


def _retrieval_result(content: dict) -> Result:
    metrics: dict[str, float] = {}
    directions: dict[str, dict] = {}
    for entry in content["scores"]:
        direction = _typed(entry["direction"], str, "direction")
        directions[direction] = {
            "queries": entry.get("queries"),
            "candidates": entry.get("candidates"),
        }
        for k, value in zip(content["at"], entry["recall"], strict=True):
            _typed(k, int, "at")
            metrics[recall_name(direction, k)] = _share(value, "recall")
    images = _typed(content.get("images", {}), dict, "images")
    return Result(
        task=RETRIEVAL,
        dataset="",
        metrics=metrics,
        main_metric=next(iter(metrics), ""),
        samples=_typed(images.get("rows", 0), int, "rows"),
        details={
            "directions": directions,
            "split": content.get("split"),
            "images": images,
            "texts": content.get("texts", {}),
        },
    )
