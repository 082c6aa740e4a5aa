"""Agreement of students with their teachers: the same answers, and the classes that were lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dimefm.evaluate.report import bars
from dimefm.evaluate.report.bars import Bar, Group
from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.parts import NONE, Figure, Section, Table
from dimefm.evaluate.report.words import joined, keys, percent
from dimefm.runs.scores import Result

TASK = "agreement"
FORGOTTEN = 5
"""Forgotten classes of a dataset that are listed at most."""

Row = tuple[Model, Result]


def section(collection: Collection) -> Section | None:
    """Return the agreement of each student; None without such scores."""
    results = collection.results(TASK)
    if not results:
        return None
    tables = [_measures(results)]
    for table in (_both(results), _forgotten(results)):
        if table.rows:
            tables.append(table)
    return Section(
        name="agreement",
        title="Agreement with the teacher",
        text=_teachers(results),
        figures=[_figure(collection, results)],
        tables=tables,
    )


def _teachers(results: Sequence[Row]) -> list[str]:
    """Return a sentence on each student and the model that it is compared with."""
    lines: dict[str, None] = {}
    for model, _ in results:
        for source in model.sources:
            settings = source.content.get("settings")
            teacher = settings.get("teacher") if isinstance(settings, dict) else None
            if isinstance(teacher, dict):
                lines[f"{model.name} is compared with {teacher.get('model')}."] = None
    return list(lines)


def _figure(collection: Collection, results: Sequence[Row]) -> Figure:
    """Return bars of the share of images with the same answer."""
    models = [model for model in collection.models if model.datasets(TASK)]
    groups = []
    parts = []
    for dataset in collection.datasets(TASK):
        made = []
        for model in models:
            value = model.value(TASK, dataset)
            made.append(Bar(model.number, model.name, None if value is None else 100 * value))
            if value is not None:
                parts.append(f"{model.name} on {dataset} {percent(value, 1)}")
        groups.append(Group(dataset, made))
    metrics = dict.fromkeys(result.main_metric for _, result in results)
    title = joined(list(metrics))
    title = f"{title[:1].upper()}{title[1:]}"
    description = f"Bars in percent: {'; '.join(parts[:12])}."
    drawn = bars.drawings(groups, "agreement", title, description)
    return Figure(
        name="agreement",
        title=title,
        description=description,
        wide=drawn["wide"],
        narrow=drawn["narrow"],
        keys=keys(models),
    )


def _measures(results: Sequence[Row]) -> Table:
    """Return how near the answers and the embeddings of both models are."""
    rows = []
    for model, result in results:
        details = result.details
        image = _table(details.get("image"))
        text = _table(details.get("text"))
        rows.append(
            [
                model.name,
                result.dataset,
                percent(result.value),
                _decimal(image.get("mean")),
                _decimal(image.get("low")),
                _decimal(text.get("mean")),
                _decimal(text.get("low")),
                _decimal(details.get("rank_correlation")),
                _decimal(details.get("kl_teacher_student")),
            ]
        )
    head = (
        "student",
        "dataset",
        "same answer, %",
        "images: nearness",
        "least 5 %",
        "classes: nearness",
        "least 5 %",
        "rank correlation",
        "KL, nats",
    )
    return Table(
        caption="Agreement",
        head=head,
        rows=rows,
        left=(0, 1),
        note=(
            "Nearness of the embeddings is the cosine where both models embed into one space, and"
            " linear CKA elsewhere."
        ),
    )


def _both(results: Sequence[Row]) -> Table:
    """Return the scores and the calibration errors of both models on the same images."""
    rows = []
    for model, result in results:
        metric = str(result.details.get("metric", ""))
        student = result.metrics.get(f"student {metric}")
        teacher = result.metrics.get(f"teacher {metric}")
        if student is None and teacher is None:
            continue
        difference = _table(result.details.get("difference"))
        rows.append(
            [
                model.name,
                result.dataset,
                metric,
                percent(student),
                percent(teacher),
                _interval(difference),
                _decimal(difference.get("p_value")),
                percent(result.metrics.get("student ECE")),
                percent(result.metrics.get("teacher ECE")),
            ]
        )
    head = (
        "student",
        "dataset",
        "metric",
        "student, %",
        "teacher, %",
        "difference",
        "p",
        "ECE of student",
        "ECE of teacher",
    )
    return Table(
        caption="Scores of both models on the same images",
        head=head,
        rows=rows,
        left=(0, 1, 2),
        note=(
            "The difference is student less teacher in points, with its interval by paired"
            " bootstrap over images. ECE is the expected calibration error in percent."
        ),
    )


def _interval(difference: Mapping[str, Any]) -> str:
    ends = [difference.get("low"), difference.get("high")]
    if not all(isinstance(end, int | float) for end in ends):
        return NONE
    low, high = ends
    return f"{100 * float(low or 0):+.1f} to {100 * float(high or 0):+.1f}"


def _forgotten(results: Sequence[Row]) -> Table:
    """Return the classes that the student lost most on."""
    rows = []
    for model, result in results:
        entries = result.details.get("forgotten")
        for entry in entries[:FORGOTTEN] if isinstance(entries, list) else ():
            if not isinstance(entry, dict):
                continue
            rows.append(
                [
                    model.name,
                    result.dataset,
                    str(entry.get("name")),
                    _share(entry.get("teacher")),
                    _share(entry.get("student")),
                    _whole(entry.get("images")),
                ]
            )
    head = ("student", "dataset", "class", "teacher, %", "student, %", "images")
    return Table("Classes that the student forgot", head, rows, left=(0, 1, 2))


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _decimal(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else NONE


def _share(value: Any) -> str:
    return percent(float(value), 1) if isinstance(value, int | float) else NONE


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE
