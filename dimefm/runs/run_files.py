"""Read run folders as training leaves them: settings, log and record, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.errors import DataError, ModelError, RecipeError
from dimefm.recipe import KEYS, Recipe, renamed
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.storage.small_files import parse_json, read_toml

RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Run:
    """One run folder: its settings by name, the lines of its log, and ``run.json``, None as
    long as it is not finished.
    """

    name: str
    folder: Path
    settings: dict[str, object]
    lines: list[dict]
    record: RunRecord | None

    def curve(self, figure: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (steps [n], values [n]) of a figure of the log."""
        found = [(line["step"], line[figure]) for line in self.lines if figure in line]
        pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def last(self, figure: str) -> float | None:
        """Return the latest value of a figure of the log, None when there is none."""
        values = self.curve(figure)[1]
        return float(values[-1]) if len(values) else None


def read_run(folder: Path, name: str | None = None) -> Run:
    """Return the run in ``folder``, called ``name``; raise ModelError when it is no run folder, or
    a damaged one.
    """
    path = folder / RECIPE
    if not path.is_file():
        imported = _imported(folder)
        if imported is not None:
            return Run(name or folder.resolve().name, folder, {}, [], imported)
        raise ModelError(
            f"{folder}: no run folder, for it has no {RECIPE}. Fix: name a folder that dimefm train"
            " wrote"
        )
    try:
        settings = read_toml(path)
        lines = _log(folder / runs.LOG)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: cannot be read as a run folder ({error}). Fix: restore its files, or leave"
            " it out"
        ) from error
    record = runs.read(folder) if (folder / runs.FILE).exists() else None
    return Run(
        name or folder.resolve().name,
        folder,
        _flat(_looked_at({**Recipe().settings(), **renamed(settings)})),
        lines,
        record,
    )


def _imported(folder: Path) -> RunRecord | None:
    """Return the record of weights that were imported, which have no recipe; else None."""
    if not (folder / runs.FILE).is_file():
        return None
    try:
        record = runs.read(folder)
    except ModelError:  # another program's file, or a damaged one
        return None
    return None if record.imported is None else record


def _looked_at(settings: dict[str, Any]) -> dict[str, object]:
    """Return the settings without those that the run does not look at, e.g. flips of the center."""
    try:
        recipe = Recipe(**settings)
    except RecipeError:  # of a newer version; it is compared by what its file has
        return settings
    ignored = {n for n, key in KEYS.items() if key.looked_at is not None and recipe.is_ignored(n)}
    return {name: value for name, value in settings.items() if name not in ignored}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of the folders, each once, called by the last part of its path, or all of it
    if need be.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    names = [folder.resolve().name for folder in unique]
    return [
        read_run(one, name if names.count(name) == 1 else str(one))
        for one, name in zip(unique, names, strict=True)
    ]


def runs_below(folder: Path) -> list[Run]:
    """Return the runs in the folders directly in ``folder``, by name; raise DataError when it is
    absent or has none.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder. Fix: give the folder that holds run folders"
        )
    found = {path.parent for path in folder.glob(f"*/{RECIPE}")}
    found |= {path.parent for path in folder.glob(f"*/{runs.FILE}") if _imported(path.parent)}
    if not found:
        raise DataError(
            f"{folder}: none of its folders is a run (has a {RECIPE}). Fix: give the folder that"
            " holds run folders"
        )
    return read_runs(sorted(found))


def _log(path: Path) -> list[dict]:
    """Return the lines of a log; the last one may be half written, and is then left out."""
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    lines = [parse_json(line) for line in whole]
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{path.name} line {number} has no 'step'")
    return lines


def _flat(table: dict, above: str = "") -> dict[str, object]:
    """Return the leaves of nested tables under names like ``losses.dime.vl.weight``."""
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def evaluated(compared: Sequence[Run]) -> list[str]:
    """Return the scores that the logs hold, the mean first, which is left out where it is of one
    dataset only.
    """
    names = dict.fromkeys(
        name for run in compared for line in run.lines for name in line if name.startswith("eval/")
    )
    sets = [name for name in names if name != "eval/mean"]
    return [*(["eval/mean"] if len(sets) > 1 else []), *sets]
