"""The beginning of a report: what was evaluated, and the main numbers."""

from __future__ import annotations

from collections.abc import Sequence

from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.parts import NONE, Section, Table, Tile
from dimefm.evaluate.report.sections.shots import is_few_shot
from dimefm.evaluate.report.words import brief, joined, percent, plural

MOST_TILES = 8


def section(collection: Collection) -> Section:
    """Return the title, the main numbers, and a table of the models' means."""
    models = collection.models
    names = joined([model.name for model in models])
    tiles: list[Tile] = []
    for model in models:
        teacher = collection.teacher_of.get(model.number)
        if teacher is not None:
            tiles += _pair_tiles(collection, model, teacher)
    if not tiles:
        for model in models:
            tiles += _lone_tiles(collection, model)
    return Section(
        name="summary",
        title=f"Evaluation of {names}",
        text=_lead(collection),
        tiles=tiles[:MOST_TILES],
        tables=[_means(collection)],
    )


def _lead(collection: Collection) -> list[str]:
    """Return sentences on what was evaluated."""
    datasets = set()
    samples: dict[str, int] = {}
    for task in collection.tasks():
        for _, result in collection.results(task):
            datasets.add(result.dataset)
            samples[result.dataset] = max(samples.get(result.dataset, 0), result.samples)
    kinds = _main_tasks(collection)
    if len(kinds) < len(collection.tasks()):
        kinds = [*kinds, "few-shot"]
    tasks = joined(kinds)
    lines = [
        f"{plural(len(collection.models), 'model')} on {plural(len(datasets), 'dataset')},"
        f" {sum(samples.values()):,} samples: {tasks}."
    ]
    for model in collection.models:
        teacher = collection.teacher_of.get(model.number)
        if teacher is not None:
            lines.append(f"Distilled: {model.name} from {teacher.name}.")
    return lines


def _main_tasks(collection: Collection) -> list[str]:
    """Return the tasks whose means are main numbers: those with all training images or none."""
    tasks = collection.tasks()
    return [task for task in tasks if not is_few_shot(task)]


def _mean(model: Model, task: str, datasets: Sequence[str]) -> float | None:
    values = [model.results[task, dataset].value for dataset in datasets]
    return sum(values) / len(values) if values else None


def _pair_tiles(collection: Collection, student: Model, teacher: Model) -> list[Tile]:
    """Return the main numbers of a student beside its teacher."""
    tiles = []
    for task in _main_tasks(collection):
        datasets = collection.shared_datasets(task, [student, teacher])
        student_mean = _mean(student, task, datasets)
        teacher_mean = _mean(teacher, task, datasets)
        if not student_mean or not teacher_mean:
            continue
        kept = f"kept {percent(student_mean / teacher_mean, 1)} %"
        large = f"{teacher.name} {percent(teacher_mean, 1)} %"
        tiles.append(
            Tile(
                label=f"{task}, {_over(datasets)}",
                value=f"{percent(student_mean, 1)} %",
                detail=f"{student.name} · {large} · {kept}",
            )
        )
    for name, noun in (("image_parameters", "image tower"), ("images_per_second", "images/s")):
        own = student.number_of(name)
        other = teacher.number_of(name)
        if own and other and name == "image_parameters":
            detail = f"{brief(own)} parameters against {brief(other)}"
            tiles.append(Tile(f"smaller {noun}", f"{other / own:.1f}×", detail))
        elif own and other:
            detail = f"{brief(own)} against {brief(other)}"
            tiles.append(Tile("images a second", f"{own / other:.1f}×", detail))
    return tiles


def _lone_tiles(collection: Collection, model: Model) -> list[Tile]:
    """Return the main numbers of a model without a teacher among the scores."""
    tiles = []
    for task in _main_tasks(collection):
        datasets = model.datasets(task)
        mean = _mean(model, task, datasets)
        if mean is not None:
            tiles.append(Tile(model.name, f"{percent(mean, 1)} %", f"{task}, {_over(datasets)}"))
    parameters = model.number_of("image_parameters")
    if parameters:
        tiles.append(Tile(model.name, brief(parameters), "parameters of the image tower"))
    return tiles


def _over(datasets: Sequence[str]) -> str:
    if len(datasets) == 1:
        return datasets[0]
    return f"mean of {len(datasets)} datasets"


def _means(collection: Collection) -> Table:
    """Return a table with a row for each model: its sizes, and its mean in each task."""
    tasks = _main_tasks(collection)
    shared = {task: collection.shared_datasets(task, _scored(collection, task)) for task in tasks}
    head = ["model", "image tower", "text tower", "image MACs", "images/s"]
    for task in tasks:
        head.append(f"{task} ({len(shared[task])})")
    rows = []
    for model in collection.models:
        row = [
            model.name,
            brief(model.number_of("image_parameters")),
            brief(model.number_of("text_parameters")),
            brief(model.number_of("image_macs")),
            brief(model.number_of("images_per_second")),
        ]
        for task in tasks:
            is_scored = bool(model.datasets(task)) and bool(shared[task])
            row.append(percent(_mean(model, task, shared[task])) if is_scored else NONE)
        rows.append(row)
    return Table(
        caption="Models and their means",
        head=head,
        rows=rows,
        note=(
            "Means in percent, over the datasets (their number in brackets) that all models with"
            " scores in a task have. Towers in parameters. MACs are multiply-accumulate operations"
            " of one image."
        ),
    )


def _scored(collection: Collection, task: str) -> list[Model]:
    """Return the models with scores in a task."""
    return [model for model in collection.models if model.datasets(task)]
