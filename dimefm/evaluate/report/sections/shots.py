"""Probes and fine-tuning over the number of training images a class, with intervals over seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dimefm.evaluate.probe.confidence import over_seeds
from dimefm.evaluate.report import lines
from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.lines import Curve
from dimefm.evaluate.report.parts import NONE, Figure, Section, Table
from dimefm.evaluate.report.words import joined, keys, percent, plural
from dimefm.runs.scores import ZERO_SHOT, Result

SHOTS = re.compile(r"(?P<kind>.+), (?P<shots>\d+)-shot")
MOST_DATASETS = 12
"""Datasets that have a chart of their own."""

ALL = "all"


@dataclass(frozen=True)
class Family:
    """Tasks that differ in the number of training images a class: marks of the axis, and tasks."""

    kind: str
    marks: Sequence[str]
    tasks: Sequence[str]


def is_few_shot(task: str) -> bool:
    """Say whether a task has a fixed number of training images a class."""
    return SHOTS.fullmatch(task) is not None


def section(collection: Collection) -> Section | None:
    """Return charts for each family of tasks with several numbers of training images."""
    figures: list[Figure] = []
    tables: list[Table] = []
    for number, family in enumerate(_families(collection.tasks())):
        figures += _figures(collection, family, f"shots-{number}")
        tables.append(_table(collection, family))
    if not tables:
        return None
    text = [
        "Whiskers are 95 % intervals: those that the scores state, else over seeds (Student's t)."
    ]
    return Section(
        name="shots", title="Few training images", text=text, figures=figures, tables=tables
    )


def _families(tasks: Sequence[str]) -> list[Family]:
    """Return the families among tasks, each with zero-shot before it and all images after it."""
    shots_of: dict[str, set[int]] = {}
    for task in tasks:
        match = SHOTS.fullmatch(task)
        if match:
            shots_of.setdefault(match["kind"], set()).add(int(match["shots"]))
    families = []
    for kind, shots in shots_of.items():
        marks = []
        names = []
        if ZERO_SHOT in tasks:
            marks.append("0")
            names.append(ZERO_SHOT)
        for count in sorted(shots):
            marks.append(str(count))
            names.append(f"{kind}, {count}-shot")
        if kind in tasks:
            marks.append(ALL)
            names.append(kind)
        families.append(Family(kind, marks, names))
    return families


def _figures(collection: Collection, family: Family, name: str) -> list[Figure]:
    """Return a chart of the mean, and a small one for each dataset."""
    models = [model for model in collection.models if _has(model, family)]
    datasets = _datasets(collection, family)
    figures = []
    shared = [name for name in datasets if _is_complete(models, family, name)]
    if len(shared) > 1:
        curves = [_mean_curve(model, family, shared) for model in models]
        title = f"{_capital(family.kind)}: mean of {plural(len(shared), 'dataset')}"
        figures.append(_figure(curves, family, f"{name}-mean", title, models))
    for number, dataset in enumerate(datasets[:MOST_DATASETS]):
        curves = [_curve(model, family, dataset) for model in models]
        curves = [curve for curve in curves if any(value is not None for value in curve.values)]
        title = f"{_capital(family.kind)}: {dataset}"
        is_small = len(datasets) > 1
        legend = models if not figures else []
        figures.append(_figure(curves, family, f"{name}-{number}", title, legend, is_small))
    return figures


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figure(
    curves: Sequence[Curve],
    family: Family,
    name: str,
    title: str,
    models: Sequence[Model],
    is_small: bool = False,
) -> Figure:
    description = _description(curves, family)
    titles = ("training images a class", "score, %")
    drawn = lines.drawings(curves, family.marks, titles, name, title, description)
    return Figure(
        name=name,
        title=title,
        description=description,
        wide=drawn["wide"],
        narrow=drawn["narrow"],
        keys=keys(models),
        is_small=is_small,
    )


def _description(curves: Sequence[Curve], family: Family) -> str:
    parts = []
    for curve in curves:
        values = []
        for mark, value in zip(family.marks, curve.values, strict=True):
            if value is not None:
                values.append(f"{value:.1f} at {mark}")
        parts.append(f"{curve.label}: {joined(values)}")
    return f"Scores in percent over training images a class. {'; '.join(parts)}."


def _has(model: Model, family: Family) -> bool:
    few = [task for task in family.tasks if is_few_shot(task)]
    return any(model.datasets(task) for task in few)


def _datasets(collection: Collection, family: Family) -> list[str]:
    """Return the datasets with at least one few-shot score."""
    names: dict[str, None] = {}
    for task in family.tasks:
        if is_few_shot(task):
            names.update(dict.fromkeys(collection.datasets(task)))
    return list(names)


def _is_complete(models: Sequence[Model], family: Family, dataset: str) -> bool:
    for model in models:
        for task in family.tasks:
            if model.datasets(task) and (task, dataset) not in model.results:
                return False
    return True


def _curve(model: Model, family: Family, dataset: str) -> Curve:
    values: list[float | None] = []
    intervals = []
    for task in family.tasks:
        result = model.results.get((task, dataset))
        values.append(None if result is None else 100 * result.value)
        intervals.append(None if result is None else interval_of(result))
    return Curve(model.number, model.name, values, intervals)


def _mean_curve(model: Model, family: Family, datasets: Sequence[str]) -> Curve:
    """Return the mean over datasets, with the interval over the seeds that all of them have."""
    values: list[float | None] = []
    intervals: list[tuple[float, float] | None] = []
    for task in family.tasks:
        results = [model.results.get((task, dataset)) for dataset in datasets]
        known = [result for result in results if result is not None]
        if len(known) < len(datasets):
            values.append(None)
            intervals.append(None)
            continue
        values.append(100 * sum(result.value for result in known) / len(known))
        intervals.append(_interval_of_means([_by_seed(result) for result in known]))
    return Curve(model.number, model.name, values, intervals)


def _by_seed(result: Result) -> dict[Any, float]:
    """Return the scores of a result by their seeds, {} where they are not known."""
    entries = result.details.get("seeds")
    scores = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("value"), int | float):
            scores[str(entry.get("seed"))] = float(entry["value"])
    return scores


def _interval_of_means(tables: Sequence[dict[Any, float]]) -> tuple[float, float] | None:
    seeds = set(tables[0])
    if len(seeds) < 2 or any(set(table) != seeds for table in tables):
        return None
    means = [sum(table[seed] for table in tables) / len(tables) for seed in sorted(seeds)]
    interval = over_seeds(means)
    return 100 * interval.low, 100 * interval.high


def interval_of(result: Result) -> tuple[float, float] | None:
    """Return the interval of a score in percent: as the scores state it, else over their seeds."""
    for stated in (result.details.get("interval"), result.details.get("confidence")):
        if isinstance(stated, Mapping):
            low = stated.get("low")
            high = stated.get("high")
            if isinstance(low, int | float) and isinstance(high, int | float):
                return 100 * float(low), 100 * float(high)
    return _interval_of_means([_by_seed(result)])


def _table(collection: Collection, family: Family) -> Table:
    """Return the scores of a family: a row for each dataset and model."""
    rows = []
    for dataset in _datasets(collection, family):
        for model in collection.models:
            cells = [_cell(model.results.get((task, dataset))) for task in family.tasks]
            if any(cell != NONE for cell in cells):
                rows.append([dataset, model.name, *cells])
    head = ["dataset", "model", *(_column(mark) for mark in family.marks)]
    return Table(
        caption=f"{_capital(family.kind)} in percent, by training images a class",
        head=head,
        rows=rows,
        left=(0, 1),
        note="± is the standard deviation over seeds.",
    )


def _column(mark: str) -> str:
    return {"0": ZERO_SHOT, ALL: "all images"}.get(mark, f"{mark} a class")


def _cell(result: Result | None) -> str:
    if result is None:
        return NONE
    deviation = result.details.get("deviation_over_seeds")
    if isinstance(deviation, int | float):
        return f"{percent(result.value)} ± {percent(deviation)}"
    return percent(result.value)
