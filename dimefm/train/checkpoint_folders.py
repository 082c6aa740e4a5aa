"""The folders of a run's checkpoints by name, and how to continue the run. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from dimefm.runs.record import FILE, LOG

STATE = "state.json"  # the file that every complete checkpoint has
LOCK = ".lock"
MARKS = ("recipe.toml", FILE, LOG, "checkpoints", "adopted", f"{LOCK}*")
"""What a folder has that holds a run, or the beginning of one."""


def folders(out: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, whole or not, oldest first."""
    named = [path for path in (out / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
    return sorted(named, key=_step_of)


def _step_of(folder: Path) -> tuple[int, str]:
    """Return what sorts checkpoints by step; a number of any length is no trouble."""
    digits = folder.name.lstrip("0")
    return len(digits), digits


def checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return [folder for folder in folders(out) if (folder / STATE).exists()]


def how_to_resume(out: Path) -> str:
    """Return what an interrupted run has left in ``out``, and how to continue it, for people."""
    if (out / FILE).exists():
        return f"{out}: the run is finished"
    complete = checkpoints(out)
    if not complete:
        return "no checkpoint was written yet. Fix: run the same command again"
    step = complete[-1].name.lstrip("0") or "0"
    return (
        f"the newest checkpoint is of step {step}. Fix: run the same command with --resume to"
        " continue from it"
    )
