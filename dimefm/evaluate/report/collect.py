"""Read the scores of a report: files of any evaluation, grouped by the model that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dimefm.errors import DataError, did_you_mean
from dimefm.runs import folder as run_folder
from dimefm.runs.record import RunRecord
from dimefm.runs.scores import (
    DEPTH,
    RETRIEVAL,
    SCORES,
    ZERO_SHOT,
    Result,
    files_below,
    read_content,
    read_results,
)
from dimefm.runtime.printable import one_line
from dimefm.storage.small_files import read_toml

RECIPE = "recipe.toml"
LEVELS = 2
"""How many folders above scores the run folder of their model may be."""

CACHES = "two caches"
"""Name of the dataset of retrieval between two caches, which have no name of their own."""


@dataclass(frozen=True)
class Source:
    """One ``scores.json``: its path as given, what it holds, and its results."""

    path: Path
    content: dict
    results: Sequence[Result]

    @property
    def folder(self) -> Path:
        """The folder of the file, which may hold examples, too."""
        return self.path.parent


@dataclass(frozen=True)
class Run:
    """The run folder of a scored model: its record, and its recipe, {} without one."""

    folder: Path
    record: RunRecord
    recipe: dict


@dataclass
class Model:
    """A scored model. ``name`` is short and differs from the other models' names.

    ``number`` counts the models of a report, from 0; it decides the color. ``spec`` is what the
    evaluation was called with. ``results`` maps (task, dataset) to the result.
    """

    number: int
    name: str
    spec: str
    weights: str | None
    sources: list[Source] = field(default_factory=list)
    results: dict[tuple[str, str], Result] = field(default_factory=dict)
    run: Run | None = None

    def fact(self, name: str) -> Any:
        """Return what the scores say of the encoder or its machine under ``name``, else None."""
        for source in self.sources:
            encoder = source.content.get("encoder")
            tables = [encoder, source.content]
            if isinstance(encoder, dict):
                tables.insert(1, encoder.get("speed"))
            for table in tables:
                if isinstance(table, dict) and table.get(name) is not None:
                    return table[name]
        return None

    def number_of(self, name: str) -> float | None:
        """Return a fact that is a number, None where it is absent or something else."""
        value = self.fact(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return None

    def datasets(self, task: str) -> list[str]:
        """Return the datasets that the model was scored on in one task."""
        return [dataset for result_task, dataset in self.results if result_task == task]

    def value(self, task: str, dataset: str) -> float | None:
        """Return the main metric of a result, None when there is no such result."""
        result = self.results.get((task, dataset))
        return None if result is None else result.value


@dataclass
class Collection:
    """Everything that a report is made from.

    ``teacher_of`` maps a student's number to the model that taught it. ``notes`` are remarks on how
    the files were read.
    """

    models: list[Model]
    sources: list[Source]
    teacher_of: dict[int, Model]
    notes: list[str]

    def tasks(self) -> list[str]:
        """Return the tasks of all results, zero-shot classification first."""
        tasks: dict[str, None] = {}
        for model in self.models:
            for task, _ in model.results:
                tasks[task] = None
        return sorted(tasks, key=lambda task: task != ZERO_SHOT)

    def datasets(self, task: str) -> list[str]:
        """Return the datasets of a task, in the order of the files."""
        names: dict[str, None] = {}
        for model in self.models:
            names.update(dict.fromkeys(model.datasets(task)))
        return list(names)

    def shared_datasets(self, task: str, models: Sequence[Model]) -> list[str]:
        """Return the datasets of a task that all of ``models`` have."""
        shared = []
        for dataset in self.datasets(task):
            if all((task, dataset) in model.results for model in models):
                shared.append(dataset)
        return shared

    def results(self, task: str) -> list[tuple[Model, Result]]:
        """Return all results of a task with their models, model by model."""
        found = []
        for model in self.models:
            for (result_task, _), result in model.results.items():
                if result_task == task:
                    found.append((model, result))
        return found


def collect(paths: Sequence[Path], teacher: str | None = None) -> Collection:
    """Read scores: files, or folders with such files in them or in the folders below.

    ``teacher`` is the name of the model that taught the others; by default it is the one that the
    run of a student names. Raises DataError for a path without scores, for a file that cannot be
    read, and for a teacher that is none of the models.
    """
    sources = []
    for path in _files(paths):
        content = read_content(path)
        sources.append(Source(path, content, read_results(path)))
    notes: list[str] = []
    models = _models(sources, notes)
    teacher_of = _teachers(models, teacher)
    return Collection(models, sources, teacher_of, notes)


def _files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of scores, each once, in the order of the paths."""
    files: dict[Path, Path] = {}
    for path in paths:
        found = [path] if path.is_file() else _below(path)
        if not found:
            raise DataError(
                f"{path}: no {SCORES} in this folder or up to {DEPTH} folders below. Fix: name a"
                " folder that dimefm eval wrote"
            )
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such file or folder. Fix: name a {SCORES}, or a folder that dimefm eval"
            " wrote"
        )
    return files_below(folder)


def _models(sources: Sequence[Source], notes: list[str]) -> list[Model]:
    """Group the sources by model: those of the same weights and the same way to be called."""
    models: dict[str, Model] = {}
    for source in sources:
        spec = str(source.content.get("model") or source.folder.name)
        weights = source.content.get("weights_sha256")
        weights = weights if isinstance(weights, str) else None
        key = weights or spec
        if key not in models:
            models[key] = Model(len(models), spec, spec, weights)
        model = models[key]
        model.sources.append(source)
        for result in source.results:
            _add(model, result, source, notes)
    for model in models.values():
        model.run = _run_of(model)
    _shorten(list(models.values()))
    return list(models.values())


def _add(model: Model, result: Result, source: Source, notes: list[str]) -> None:
    """Add a result to its model; the first of two for one task and dataset is kept."""
    name = (result.task, result.dataset)
    if result.task == RETRIEVAL and not result.dataset:
        name = (result.task, CACHES)
    if name in model.results and model.results[name].value == result.value:
        return
    if name in model.results:
        notes.append(
            f"{one_line(model.spec)} has two results for {one_line(name[1])} ({name[0]}); the one"
            f" in {one_line(str(source.path))} is not shown."
        )
        return
    model.results[name] = result


def _shorten(models: Sequence[Model]) -> None:
    """Call each model by the end of its spec, as short as the names stay apart."""
    for longer in range(9):
        for model in models:
            model.name = _tail(model.spec, _least_parts(model) + longer)
        if len({model.name for model in models}) == len(models):
            return
    counts: dict[str, int] = {}
    for model in models:
        name = model.name
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            model.name = f"{name} ({counts[name]})"


def _least_parts(model: Model) -> int:
    """Return how many parts of its spec a model's name has at least: both of ``ARCH/TAG``."""
    is_tag = model.spec.count("/") == 1 and model.run is None
    return 2 if is_tag else 1


def _tail(spec: str, parts: int) -> str:
    pieces = [piece for piece in spec.replace("\\", "/").split("/") if piece]
    return one_line("/".join(pieces[-parts:]) or spec)


def _run_of(model: Model) -> Run | None:
    """Return the run that the model is, when its folder holds the scores."""
    for source in model.sources:
        folder = source.path.absolute().parent
        for candidate in (folder, *folder.parents[:LEVELS]):
            is_run = (candidate / run_folder.FILE).is_file()
            if is_run and _tail(model.spec, 1) == one_line(candidate.name):
                return Run(candidate, run_folder.read(candidate), _recipe(candidate))
    return None


def _recipe(folder: Path) -> dict:
    path = folder / RECIPE
    if not path.is_file():
        return {}
    try:
        return read_toml(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as a recipe ({error}). Fix: restore the file"
        ) from error


def _teachers(models: Sequence[Model], asked_for: str | None) -> dict[int, Model]:
    """Return the teacher of each model that has one among the models."""
    if asked_for is not None:
        chosen = _model_called(models, asked_for)
        return {model.number: chosen for model in models if model is not chosen}
    teacher_of: dict[int, Model] = {}
    by_weights = {model.weights: model for model in models if model.weights}
    for model in models:
        for card in _teacher_cards(model):
            teacher = by_weights.get(card.get("weights_sha256"))
            if teacher is not None and teacher is not model:
                teacher_of.setdefault(model.number, teacher)
    return teacher_of


def _teacher_cards(model: Model) -> list[dict]:
    """Return what a model's run, and its comparison with a teacher, say of its teachers."""
    cards = []
    if model.run is not None:
        cards += [model.run.record.teacher, *model.run.record.teachers]
    for source in model.sources:
        settings = source.content.get("settings")
        if isinstance(settings, dict):
            cards.append(settings.get("teacher"))
    return [card for card in cards if isinstance(card, dict)]


def _model_called(models: Sequence[Model], name: str) -> Model:
    for model in models:
        if name in (model.name, model.spec):
            return model
    names = [model.name for model in models]
    raise DataError(
        f"--teacher {name}: not among the scored models ({did_you_mean(name, names)}). Fix: name"
        f" one of {', '.join(names[:5])}"
    )
