"""Scores of each dataset, task by task: bars of all models beside chance, and the table."""

from __future__ import annotations

from collections.abc import Sequence

from dimefm.evaluate.report import bars
from dimefm.evaluate.report.bars import Bar, Group
from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.parts import NONE, Figure, Key, Section, Table
from dimefm.evaluate.report.sections import agreement
from dimefm.evaluate.report.sections.retrieval import is_retrieval
from dimefm.evaluate.report.sections.shots import interval_of, is_few_shot
from dimefm.evaluate.report.words import count, joined, keys, percent
from dimefm.evaluate.reports import unreadable_images
from dimefm.runs.scores import Result

MOST_MODELS = 7
"""Models that a chart shows; there is a color for each."""

MOST_DATASETS = 60
CHANCE = Key("chance", "chance")
INTERVAL = Key("whisker", "95 % interval")


def section(collection: Collection) -> Section | None:
    """Return a figure and a table for each task."""
    figures = []
    for number, task in enumerate(collection.tasks()):
        if is_few_shot(task) or is_retrieval(task) or task == agreement.TASK:
            continue  # they have sections of their own
        figures.append(_figure(collection, task, f"scores-{number}"))
    if not figures:
        return None
    return Section(name="scores", title="Scores of each dataset", figures=figures)


def _figure(collection: Collection, task: str, name: str) -> Figure:
    models = [model for model in collection.models if model.datasets(task)]
    shown = models[:MOST_MODELS]
    datasets = collection.datasets(task)
    groups = [_group(shown, task, dataset) for dataset in datasets[:MOST_DATASETS]]
    title = f"{task[0].upper()}{task[1:]}"
    description = _description(shown, task, groups)
    drawn = bars.drawings(groups, name, title, description)
    has_chance = any(group.chance is not None for group in groups)
    legend = keys(shown)
    if has_chance:
        legend.append(CHANCE)
    if any(bar.low is not None for group in groups for bar in group.bars):
        legend.append(INTERVAL)
    note = ""
    if len(models) > len(shown) or len(datasets) > len(groups):
        note = (
            f"The chart shows {len(shown)} of {len(models)} models and {len(groups)} of"
            f" {len(datasets)} datasets; the table has all."
        )
    return Figure(
        name=name,
        title=title,
        description=description,
        wide=drawn["wide"],
        narrow=drawn["narrow"],
        keys=legend,
        table=_table(collection, task, models),
        note=note,
    )


def _group(models: Sequence[Model], task: str, dataset: str) -> Group:
    made = []
    chance = None
    for model in models:
        result = model.results.get((task, dataset))
        value = None if result is None else 100 * result.value
        ends = None if result is None else interval_of(result)
        low, high = ends or (None, None)
        made.append(Bar(model.number, model.name, value, low, high))
        if result is not None and result.chance is not None:
            chance = result.chance
    return Group(dataset, made, chance)


def _description(models: Sequence[Model], task: str, groups: Sequence[Group]) -> str:
    """Return the chart in words."""
    names = joined([model.name for model in models])
    parts = []
    for group in groups[:5]:
        values = []
        for bar in group.bars:
            if bar.value is not None:
                values.append(f"{bar.label} {bar.value:.1f}")
        parts.append(f"{group.label}: {', '.join(values)}")
    return f"Bars of {task} scores in percent of {names}. {'; '.join(parts)}."


def _table(collection: Collection, task: str, models: Sequence[Model]) -> Table:
    """Return all scores of a task: a row for each dataset, a column for each model."""
    head = ["dataset", "metric", *(model.name for model in models)]
    pairs = [(model, collection.teacher_of.get(model.number)) for model in models]
    pairs = [(student, teacher) for student, teacher in pairs if teacher in models]
    for student, _ in pairs:
        head.append("kept" if len(pairs) == 1 else f"kept by {student.name}")
    head += ["chance", "samples", "unreadable", "note"]
    rows = []
    for dataset in collection.datasets(task):
        results = [model.results.get((task, dataset)) for model in models]
        known = [result for result in results if result is not None]
        row = [dataset, known[0].main_metric]
        row += [percent(None if result is None else result.value) for result in results]
        for student, teacher in pairs:
            row.append(_kept(student.value(task, dataset), teacher.value(task, dataset)))
        row += _facts(known)
        rows.append(row)
    return Table(
        caption=f"{task[0].upper()}{task[1:]} in percent",
        head=head,
        rows=rows,
        left=(0, 1, len(head) - 1),
    )


def _kept(student: float | None, teacher: float | None) -> str:
    if student is None or not teacher:
        return NONE
    return percent(student / teacher, 1)


def _facts(results: Sequence[Result]) -> list[str]:
    """Return what all models' results of a dataset have in common."""
    chances = [result.chance for result in results if result.chance is not None]
    notes = dict.fromkeys(result.note for result in results if result.note)
    for result in results:
        if result.unreadable:
            notes[unreadable_images(result)] = None
    return [
        percent(chances[0] if chances else None, 1),
        count(max(result.samples for result in results)),
        count(max(result.unreadable for result in results)),
        "; ".join(notes),
    ]
