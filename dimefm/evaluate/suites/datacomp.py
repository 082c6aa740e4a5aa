"""DataComp's list of tasks: 40 of them, 38 of which are in its average.

Source: https://github.com/mlfoundations/datacomp, tasklist.yml; the tasks lie in ``datacomp.toml``.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.evaluate.suites.metrics import ACC1
from dimefm.runs.scores import Result

AVERAGE = "DataComp average"
NO_METRIC = "none"


@dataclass(frozen=True)
class Task:
    """One task: its ``key``, DataComp's ``name`` for it, and what is published about it.

    ``size`` images are scored by ``metric``; ``classes`` and ``chance`` (what random scores reach,
    0 to 1) are None where unknown. ``group`` is the column of an image's metadata that says its
    group. ``folders`` are further names of its folder.
    """

    key: str
    name: str
    size: int
    metric: str = ACC1
    classes: int | None = None
    chance: float | None = None
    group: int | None = None
    folders: tuple[str, ...] = ()


@functools.cache
def tasks() -> tuple[Task, ...]:
    """Return all tasks in DataComp's order; those without a main metric have ``NO_METRIC``."""
    content = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    listed = []
    for key, fields in content.items():
        fields["folders"] = tuple(fields.get("folders", ()))
        listed.append(Task(key=key, **fields))
    return tuple(listed)


def counted_tasks() -> tuple[Task, ...]:
    """Return the tasks that are in DataComp's average."""
    return tuple(task for task in tasks() if task.metric != NO_METRIC)


def average(results: Sequence[Result]) -> tuple[str, float]:
    """Return the mean of the main metrics of tasks, 0 to 1, and what it may be called.

    Only over all tasks that count it is DataComp's average.
    """
    values = [result.value for result in results]
    mean = sum(values) / len(values)
    wanted = {task.key for task in counted_tasks()}
    if {result.dataset for result in results} == wanted:
        return AVERAGE, mean
    return f"mean over {len(values)} of {len(wanted)} DataComp tasks", mean
