"""Checkpoints: a folder per step, complete or absent, without pickle; and the folder of the best
weights so far.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from dimefm.errors import ModelError
from dimefm.runs import folder as runs
from dimefm.storage.files import to_json, write_text
from dimefm.train.early_stopping import EarlyStopping
from dimefm.train.ema import Ema

MODEL, OPTIMIZER, AVERAGE, STATE = (
    "model.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
)
FORMER_NAMES = (
    (re.compile(r"^(module\.)?learn[t]\."), r"\1loss_modules."),
    (re.compile(r"^(module\.)?bridge\."), r"\1projection."),
)
"""What parts of the student were called in checkpoints of 0.1.0's first builds, and are called
now.
"""


def save(
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    caches: dict[str, list[str]],
    ema: Ema | None = None,
    watch: EarlyStopping | None = None,
) -> Path:
    """Write ``out/checkpoints/STEP`` (after ``step`` optimizer steps) and drop all but the ``keep``
    newest.

    ``caches`` are the fingerprints of what the run learns from; :func:`load` gives them back. An
    error, as of a full disk, leaves the checkpoints that were there.
    """
    folder = out / "checkpoints" / f"{step:08d}"
    part = folder.with_name(folder.name + ".part")
    with _filled(part):
        runs.save_tensors(model.state_dict(), part / MODEL)
        runs.save_tensors(_flatten(model, optimizer), part / OPTIMIZER)
        if ema is not None:
            runs.save_tensors(ema.state_dict(), part / AVERAGE)
        state = {"step": step, "caches": caches}
        write_text(
            part / STATE, to_json(state if watch is None else {**state, "watch": watch.state()})
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    for old in checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (out / "checkpoints").glob(f"[0-9]*[0-9]/{STATE}"))


def save_best(out: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill ``out/checkpoints/best`` with the best weights so far, in place of those
    before; return it.

    An error leaves those before. A process that dies between two renames leaves them as
    ``best.old``, see :func:`best`.
    """
    folder = out / "checkpoints" / "best"
    part, old = folder.with_name("best.part"), folder.with_name("best.old")
    with _filled(part):
        write(part)
    best(out)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def best(out: Path) -> Path | None:
    """Return the folder of the best weights so far, None when there is none."""
    folder = out / "checkpoints" / "best"
    old = folder.with_name("best.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder if folder.exists() else None


def load(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
    watch: EarlyStopping | None = None,
) -> tuple[int, dict[str, list[str]]]:
    """Restore what is given; return (steps done, fingerprints of the caches). Raises ModelError if
    damaged.
    """
    runs.load_weights(model, folder / MODEL, _with_present_names)
    if ema is not None:
        runs.load_weights(ema, folder / AVERAGE, _with_present_names)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        step, caches = state["step"], state["caches"]
        if watch is not None:
            watch.restore(state["watch"])
        flat = _with_present_names(load_file(folder / OPTIMIZER))
        for name, parameter in model.named_parameters():
            if f"{name}/step" in flat:
                optimizer.state[parameter] = {
                    "step": flat[f"{name}/step"].to(parameter.device),
                    **{
                        field: _like(flat[f"{name}/{field}"], parameter)
                        for field in ("exp_avg", "exp_avg_sq")
                    },
                }
    except Exception as error:  # safetensors, JSON and file errors: all mean the same to the user
        raise ModelError(
            f"{folder}: the checkpoint is damaged ({error}). Fix: remove it to resume from the one"
            " before"
        ) from error
    return step, caches


def _with_present_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint under the names that the student's parts have now."""
    renamed = {}
    for name, value in tensors.items():
        for former, present in FORMER_NAMES:
            name = former.sub(present, name)
        renamed[name] = value
    return renamed


@contextlib.contextmanager
def _filled(part: Path) -> Iterator[None]:
    """Make ``part`` an empty folder to fill; on an error it goes, and what it took of the disk with
    it.
    """
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return ``value`` laid out in memory as ``parameter``: the fused optimizer goes through both
    as they lie.
    """
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{field}": value
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    }
