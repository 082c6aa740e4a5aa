"""Runs that differ only in their seed, as one column: mean and deviation of what they have."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dimefm.runs.scored import Key, Scored

NOT_IN_RECIPE = (
    "seed",
    "device",
    "workers",
    "scratch",
    "log_every",
    "save_every",
    "keep",
    "report_to",
)
"""Keys in which the runs of one column may differ: the seed, and where and how closely it ran."""

NONE = "-"
NUMBER = re.compile(r"-?[\d,]+(\.\d+)?")
LEAST_NAME = 3  # characters of the common beginning of the names of runs


def groups(settings: Sequence[dict[str, object]]) -> list[list[int]]:
    """Return the numbers of the runs of each column, from their settings.

    Runs belong together when their settings are equal but for the seed, and no two seeds are equal.
    """
    same: dict[str, list[int]] = {}
    for number, one in enumerate(settings):
        recipe = {name: value for name, value in one.items() if name not in NOT_IN_RECIPE}
        key = repr(sorted(recipe.items())) if recipe else f"without a recipe {number}"
        same.setdefault(key, []).append(number)
    found = []
    for numbers in same.values():
        seeds = {settings[number].get("seed") for number in numbers}
        if len(seeds) == len(numbers):
            found.append(numbers)
        else:
            found += [[number] for number in numbers]
    return sorted(found)


def common_name(names: Sequence[str]) -> str:
    """Return what to call runs together: the common beginning of their names, and how many."""
    if len(names) == 1:
        return names[0]
    start = os.path.commonprefix(list(names))
    short = re.sub(r"[-_. ]*(seed|s)?[-_. =]*$", "", start)
    name = short if len(short) >= LEAST_NAME else names[0]
    return f"{name} (n={len(names)})"


def merged(cells: Sequence[str | None]) -> str:
    """Return one cell for those of several runs: mean ± deviation of numbers as they are printed,
    else what most are. None is a run without this figure.
    """
    known = [cell for cell in cells if cell is not None]
    if len(cells) == 1 or len(set(known)) == 1:
        missing = len(cells) - len(known)
        return known[0] + (f" ({missing} without)" if missing else "")
    if all(NUMBER.fullmatch(cell) for cell in known):
        values = [float(cell.replace(",", "")) for cell in known]
        digits = max(len(cell.partition(".")[2]) for cell in known)
        text = f"{np.mean(values):,.{digits}f} ± {np.std(values, ddof=1):,.{digits}f}"
        return text if len(known) == len(cells) else f"{text} (n={len(known)})"
    counts = Counter(known)
    return ", ".join(f"{count} {text}" for text, count in counts.items())


@dataclass(frozen=True)
class Cell:
    """Scores of one model, or of runs of several seeds, in percent: ``mean`` of ``n``, and the
    sample's standard deviation, None for a single one.
    """

    mean: float
    deviation: float | None = None
    n: int = 1

    @property
    def text(self) -> str:
        """Return it with two decimals."""
        if self.deviation is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


@dataclass(frozen=True)
class Column:
    """Everything that was scored of one model, or of the runs of several seeds."""

    name: str
    cells: dict[Key, Cell]
    size: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Return the scores in percent, for JSON."""
        found = []
        for key, cell in self.cells.items():
            found.append(
                {
                    "task": key.task,
                    "dataset": key.name,
                    "metric": key.metric,
                    "mean": cell.mean,
                    "deviation": cell.deviation,
                    "n": cell.n,
                }
            )
        return {"name": self.name, "n": self.size, "scores": found}


def column(name: str, members: Sequence[Scored]) -> Column:
    """Return the scores of one model (one member), or of several runs together."""
    keys = dict.fromkeys(key for member in members for key in member.values)
    cells = {}
    for key in keys:
        values = [100 * member.values[key] for member in members if key in member.values]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        cells[key] = Cell(float(np.mean(values)), deviation, len(values))
    return Column(name, cells, len(members))
