"""Accuracy against what a model costs: its parameters, and the images that it encodes a second.

Where ImageNet-1k is scored, published models stand beside the given ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from dimefm.evaluate.report import scatter
from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.parts import Figure, Key, Section, Table
from dimefm.evaluate.report.published import PublishedModel, published
from dimefm.evaluate.report.scatter import Axis, Point
from dimefm.evaluate.report.words import brief, keys, percent, plural
from dimefm.runs.scores import ZERO_SHOT

IMAGENET = ("imagenet-1k", "imagenet1k", "imagenet", "imagenet-val")
"""Names of ImageNet-1k's validation set."""

PUBLISHED = Key("published", "published models")
NO_LATENCY = (
    "Published models are not in this chart: their speed was not measured on this machine, and"
    " speeds of different machines do not compare."
)


def section(collection: Collection) -> Section | None:
    """Return the charts of accuracy against parameters and against speed."""
    scored = _scored(collection)
    if scored is None:
        return None
    what, values = scored
    figures = []
    by_size = _by_size(collection, what, values)
    if by_size is not None:
        figures.append(by_size)
    by_speed = _by_speed(collection, what, values)
    if by_speed is not None:
        figures.append(by_speed)
    if not figures:
        return None
    return Section(name="cost", title="Accuracy and its cost", figures=figures)


def imagenet_of(collection: Collection) -> str | None:
    """Return the name that ImageNet-1k has in the zero-shot scores, None where it is absent."""
    for dataset in collection.datasets(ZERO_SHOT):
        if dataset.casefold().replace("_", "-") in IMAGENET:
            return dataset
    return None


def _scored(collection: Collection) -> tuple[str, dict[int, float]] | None:
    """Return what the vertical axis is, and its value for each model by the model's number."""
    tasks = collection.tasks()
    if not tasks:
        return None
    imagenet = imagenet_of(collection)
    if imagenet is not None:
        values = {}
        for model in collection.models:
            value = model.value(ZERO_SHOT, imagenet)
            if value is not None:
                values[model.number] = value
        return "ImageNet-1k zero-shot", values
    task = tasks[0]
    models = [model for model in collection.models if model.datasets(task)]
    datasets = collection.shared_datasets(task, models)
    if not datasets:
        return None
    values = {}
    for model in models:
        scores = [model.results[task, dataset].value for dataset in datasets]
        values[model.number] = sum(scores) / len(scores)
    what = datasets[0] if len(datasets) == 1 else f"mean of {plural(len(datasets), 'dataset')}"
    return f"{task}, {what}", values


def _given(
    collection: Collection, fact: str, values: dict[int, float]
) -> list[tuple[Model, float, float]]:
    """Return (model, its cost, its value) of the models that have both."""
    found = []
    for model in collection.models:
        cost = model.number_of(fact)
        if cost is not None and cost > 0 and model.number in values:
            found.append((model, cost, values[model.number]))
    return found


def _points(given: Sequence[tuple[Model, float, float]]) -> list[Point]:
    return [Point(cost, 100 * value, model.name, model.number) for model, cost, value in given]


def _by_size(collection: Collection, what: str, values: dict[int, float]) -> Figure | None:
    given = _given(collection, "image_parameters", values)
    if not given:
        return None
    others: Sequence[PublishedModel] = ()
    if imagenet_of(collection) is not None:
        others = published()
    points = _points(given)
    points += [Point(other.image_parameters, 100 * other.imagenet, other.name) for other in others]
    title = "Accuracy against parameters"
    description = _description(given, what, "parameters of the image tower")
    if others:
        description += f" Beside them are {len(others)} published models."
    axis = Axis("parameters of the image tower", brief)
    drawn = scatter.drawings(points, axis, f"{what}, %", "cost-size", title, description)
    legend = keys([model for model, _, _ in given])
    if others:
        legend.append(PUBLISHED)
    note = ""
    if not others:
        note = "Published models stand here where the scores hold ImageNet-1k."
    return Figure(
        name="cost-size",
        title=title,
        description=description,
        wide=drawn["wide"],
        narrow=drawn["narrow"],
        keys=legend,
        table=_size_table(given, others, what),
        note=note,
    )


def _size_table(
    given: Sequence[tuple[Model, float, float]], others: Sequence[PublishedModel], what: str
) -> Table:
    rows = []
    for model, cost, value in given:
        text = model.number_of("text_parameters")
        total = None if text is None else cost + text
        rows.append([model.name, brief(cost), brief(total), percent(value), "these scores"])
    for other in others:
        rows.append(
            [
                other.name,
                brief(other.image_parameters),
                brief(other.parameters),
                percent(other.imagenet, 1),
                other.source,
            ]
        )
    head = ("model", "image tower", "both towers", f"{what}, %", "source")
    return Table("Accuracy and parameters", head, rows, left=(0, 4))


def _by_speed(collection: Collection, what: str, values: dict[int, float]) -> Figure | None:
    given = _given(collection, "images_per_second", values)
    if not given:
        return None
    title = "Accuracy against speed"
    description = _description(given, what, "images a second")
    axis = Axis("images a second", brief)
    drawn = scatter.drawings(_points(given), axis, f"{what}, %", "cost-speed", title, description)
    rows = []
    for model, cost, value in given:
        rows.append([model.name, brief(cost), percent(value)])
    return Figure(
        name="cost-speed",
        title=title,
        description=description,
        wide=drawn["wide"],
        narrow=drawn["narrow"],
        keys=keys([model for model, _, _ in given]),
        table=Table("Accuracy and speed", ("model", "images/s", f"{what}, %"), rows),
        note=NO_LATENCY,
    )


def _description(given: Sequence[tuple[Model, float, float]], what: str, cost_name: str) -> str:
    """Return the points in words."""
    parts = []
    for model, cost, value in given[:8]:
        parts.append(f"{model.name} reaches {percent(value, 1)} with {brief(cost)}")
    return f"{what} in percent over {cost_name}: {'; '.join(parts)}."
