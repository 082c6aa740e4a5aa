"""The cells of the study: what ``pipelines/study/study.toml`` says, as the ``dimefm`` commands that
a user would type.
"""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._study_data import HELD_OUT
from dimefm.errors import RecipeError, did_you_mean

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "pipelines/study"
TEACHER = ROOT / "tests/data/teacher"
RUNS = "runs"


@dataclass(frozen=True)
class Cell:
    """One way to train: a recipe of the folder and what replaces its keys; ``published`` is what
    papers say of it.
    """

    name: str
    what: str
    recipe: str
    changes: dict
    published: str = ""


@dataclass(frozen=True)
class Group:
    """Cells that are compared with the first of them, or with another one that ``against`` names.

    ``score`` is ``"zero-shot"`` or ``"retrieval"``.
    """

    name: str
    title: str
    about: str
    score: str
    cells: tuple[str, ...]
    against: dict[str, str] = field(default_factory=dict)

    @property
    def bases(self) -> set[str]:
        """The cells that others are compared with."""
        return {self.cells[0], *self.against.values()}


@dataclass(frozen=True)
class Study:
    """All cells by name and in order, their recipes, the commands that make each cache, and the
    groups of the report.
    """

    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    caches: dict[str, tuple[str, ...]]
    cells: dict[str, Cell]
    groups: tuple[Group, ...]
    recipes: dict[str, dict]

    def score(self, cell: Cell) -> str:
        """Return how a cell is scored: as its group says."""
        return next(group.score for group in self.groups if cell.name in group.cells)


@dataclass(frozen=True)
class Plan:
    """What is run: a study, in the folder ``out``, on ``data``, of a ``share`` (0 to 1) of its
    images, with ``scale`` times the steps of its recipes."""

    study: Study
    out: Path
    data: Path
    scale: float = 1.0
    share: float = 1.0

    def steps(self, cell: Cell) -> int:
        """Return the steps of a cell's runs; a cell may say 0."""
        if cell.changes.get("steps") == 0:
            return 0
        return max(1, round(self.study.recipes[cell.recipe]["steps"] * self.scale))

    def scaled(self, cell: Cell) -> dict:
        """Return the changes of a cell, with the steps before a cut scaled as all steps are."""
        changes = dict(cell.changes)
        for key in ("prune_steps", "prune_warmup"):
            if key in changes:
                changes[key] = max(1, round(changes[key] * self.scale))
        return changes

    def settings(self, cell: Cell) -> dict:
        """Return everything that decides a cell's result, but for the seed and the code, as JSON
        values.
        """
        recipe = {**self.study.recipes[cell.recipe], **self.scaled(cell)}
        recipe["steps"] = self.steps(cell)
        found = {**recipe, "share": self.share, "datasets": list(self.study.datasets)}
        return json.loads(json.dumps(found))

    def folder(self, cell: Cell, seed: int) -> str:
        """Return the run folder of a cell and seed, seen from ``out``."""
        return f"{RUNS}/{cell.name}-{seed}"


def read(path: Path = FOLDER / "study.toml") -> Study:
    """Return the study that a file describes; raise RecipeError when it does not fit together."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        recipes = {cell["recipe"] for cell in table["cell"].values()}
        found = {
            name: tomllib.loads((path.parent / name).read_text(encoding="utf-8"))
            for name in sorted(recipes)
        }
        cells = {
            name: Cell(
                name, fields.pop("what"), fields.pop("recipe"), fields.pop("set", {}), **fields
            )
            for name, fields in table["cell"].items()
        }
        groups = tuple(
            Group(name, **{**fields, "cells": tuple(fields["cells"])})
            for name, fields in table["group"].items()
        )
        caches = {name: tuple(commands) for name, commands in table["cache"].items()}
        study = Study(tuple(table["seeds"]), tuple(table["datasets"]), caches, cells, groups, found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path}: cannot be read as a study ({error!r}); mend it") from error
    _check(path, study)
    return study


def _check(path: Path, study: Study) -> None:
    compared = [
        name
        for group in study.groups
        for name in (*group.cells, *group.against, *group.against.values())
    ]
    unknown = next((name for name in compared if name not in study.cells), None)
    if unknown is not None:
        raise RecipeError(
            f"{path}: a group names cell '{unknown}': {did_you_mean(unknown, study.cells)}"
        )
    alone = next((name for name in study.cells if name not in compared), None)
    if alone is not None:
        raise RecipeError(f"{path}: cell '{alone}' is in no group; name it in the cells of one")


def chosen(study: Study, names: Sequence[str]) -> list[Cell]:
    """Return the cells of these names in the study's order, all without names; raise RecipeError
    for an unknown one.
    """
    unknown = next((name for name in names if name not in study.cells), None)
    if unknown is not None:
        raise RecipeError(
            f"--cells {unknown}: there is no such cell: {did_you_mean(unknown, study.cells)}"
        )
    return [cell for name, cell in study.cells.items() if not names or name in names]


def caches_of(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    """Return the names of the caches that cells learn from or are scored on, each after those that
    it is made from.
    """
    study, found = plan.study, []

    def need(text: str) -> None:
        for name in study.caches:
            if f"cache/{name}/" in text and name not in found:
                for command in study.caches[name]:
                    need(command.replace(f"cache/{name}/", "").replace(f"cache/{name} ", ""))
                found.append(name)

    for cell in cells:
        need(json.dumps(plan.settings(cell)))
        for words in commands(plan, cell, 0):
            need(" ".join(words))
    return found


def cache_commands(plan: Plan, name: str) -> list[list[str]]:
    """Return the commands that make a cache, seen from ``plan.out``."""
    places = {
        "data": _seen(plan.data, plan.out),
        "teacher": _seen(TEACHER, plan.out),
        "study": _seen(FOLDER, plan.out),
    }
    return [shlex.split(command.format_map(places)) for command in plan.study.caches[name]]


def commands(plan: Plan, cell: Cell, seed: int) -> list[list[str]]:
    """Return the commands that train and score a cell with a seed, as words after ``dimefm``, seen
    from ``plan.out``.
    """
    steps, out = plan.steps(cell), plan.folder(cell, seed)
    words = ["train", "--recipe", _seen(FOLDER / cell.recipe, plan.out)]
    words += [
        word.replace("{teacher}", _seen(TEACHER, plan.out))
        for key, value in plan.scaled(cell).items()
        if key != "steps"
        for word in ("--set", f"{key}={toml(value)}")
    ]
    log_every, save_every = max(1, -(-steps // 25)), max(1, -(-steps // 4))
    words += ["--seed", str(seed), "--steps", str(steps), "--log-every", str(log_every)]
    words += ["--save-every", str(save_every), "--resume", "--out", out]
    if plan.study.score(cell) == "retrieval":
        return [words, *_retrieval(plan, out)]
    places = [
        "--eval-root",
        f"{_seen(plan.data, plan.out)}/classification",
        "--eval-every",
        str(max(1, steps)),
    ]
    return [[*words, *places, "--eval-datasets", ",".join(plan.study.datasets)]]


def _retrieval(plan: Plan, run: str) -> Iterator[list[str]]:
    """Yield the commands that score the text tower of ``run`` on photos that it has not met."""
    split = ["--split", HELD_OUT]
    yield [
        "extract-features",
        "--teacher",
        run,
        "--texts",
        "data/captions.tsv",
        *split,
        "--out",
        f"{run}/scored",
    ]
    caches = ["--images", "cache/flickr8k/all", "--texts", f"{run}/scored/texts"]
    yield ["eval", "retrieval", *caches, *split, "--out", f"{run}/scores"]


def _seen(path: Path, folder: Path) -> str:
    """Return a path as it is seen from ``folder``."""
    return os.path.relpath(path.resolve(), folder.resolve())


def toml(value: object) -> str:
    """Return a value of a recipe as TOML on one line."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)
