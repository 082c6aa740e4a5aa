"""Results in the forms of clip-benchmark and DataComp: a JSON object a line, and one CSV.

Sources: clip_benchmark 1.6.2, cli.py (``eval --output`` and ``build``); DataComp, evaluate.py.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from dimefm.evaluate.suites.datacomp import tasks
from dimefm.evaluate.suites.metrics import ACC1, ACC5
from dimefm.evaluate.suites.retrieval import MEAN_AT_1
from dimefm.runs.scores import RETRIEVAL, Result, Scores
from dimefm.storage.files import write_text

CLIP_BENCHMARK = "clip_benchmark.jsonl"
DATACOMP = "datacomp.jsonl"
TABLE = "results.csv"
LANGUAGE = "en"
COLUMNS = ("dataset", "model", "pretrained", "model_fullname", "task", "language")
TASKS = {RETRIEVAL: "zeroshot_retrieval"}
"""Task of a result -> its name in clip-benchmark, where it is not zero-shot classification."""

OF_CLIP_BENCHMARK = (
    ACC1,
    ACC5,
    "mean_per_class_recall",
    "mean_average_precision",
    "image_retrieval_recall",
    "text_retrieval_recall",
)
"""Beginnings of the names of clip-benchmark's metrics; other metrics are not in its lines."""


def write_lines(out: Path, scores: Scores) -> None:
    """Write clip-benchmark's lines and table, and DataComp's lines where a result is a task."""
    entries = []
    for result in scores.results:
        entry = _clip_benchmark_entry(scores.model, result)
        if entry["metrics"]:  # WinoGAViL has none of its metrics
            entries.append(entry)
    write_text(out / CLIP_BENCHMARK, _as_lines(entries))
    write_text(out / TABLE, _as_table(entries))
    if scores.settings["suite"] == "datacomp":
        write_text(out / DATACOMP, _as_lines(_datacomp_entries(scores.results)))


def _as_lines(entries: Sequence[dict]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def model_names(model: str) -> tuple[str, str]:
    """Return clip-benchmark's ``model`` and ``pretrained``: ``ViT-B-32`` and ``openai``, for one.

    A model that is no ``ARCH/TAG`` of open_clip, such as a run, has no ``pretrained``.
    """
    from open_clip import list_models

    architecture, slash, tag = model.partition("/")
    if slash and "/" not in tag and architecture in list_models():
        return architecture, tag
    return model, ""


def _metrics_of(result: Result) -> dict[str, float | None]:
    """Return the metrics of a result; top-5 accuracy is None where there are too few classes."""
    metrics: dict[str, float | None] = dict(result.metrics)
    if ACC1 in metrics and ACC5 not in metrics:
        metrics[ACC5] = None
    return metrics


def _clip_benchmark_entry(name: str, result: Result) -> dict:
    model, pretrained = model_names(name)
    metrics = {}
    for metric, value in _metrics_of(result).items():
        if metric.startswith(OF_CLIP_BENCHMARK):
            metrics[metric] = value
    return {
        "dataset": f"wds/{result.dataset}",
        "model": model,
        "pretrained": pretrained,
        "task": TASKS.get(result.task, "zeroshot_classification"),
        "metrics": metrics,
        "language": LANGUAGE,
    }


def _as_table(entries: Sequence[dict]) -> str:
    """Return one row for each entry, as ``clip_benchmark build`` writes them."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["metrics"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *names], lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        row = {key: value for key, value in entry.items() if key != "metrics"}
        row["model_fullname"] = f"{entry['model']} {entry['pretrained']}"
        writer.writerow(row | entry["metrics"])
    return text.getvalue()


def _datacomp_entries(results: Sequence[Result]) -> list[dict]:
    names = {task.key: task.name for task in tasks()}
    entries = []
    for result in results:
        metrics = {**_metrics_of(result), "main_metric": result.value}
        if MEAN_AT_1 in metrics:
            metrics.pop(ACC5, None)
        entries.append(
            {"key": result.dataset, "dataset": names[result.dataset], "metrics": metrics}
        )
    return entries
