"""Checkpoints: a folder per step, complete or absent, without pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from dimefm.cache.files import to_json, write_text
from dimefm.errors import ModelError
from dimefm.models import runs

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def save(
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int, caches: dict[str, list[str]]
) -> Path:
    """Write ``out/checkpoints/STEP`` (after ``step`` optimizer steps) and drop all but the ``keep`` newest.

    ``caches`` are the fingerprints of what the run learns from; :func:`load` gives them back.
    """
    folder = out / "checkpoints" / f"{step:08d}"
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    runs.save_tensors(model.state_dict(), part / MODEL)
    runs.save_tensors(_flatten(model, optimizer), part / OPTIMIZER)
    write_text(part / STATE, to_json({"step": step, "caches": caches}))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    for old in checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (out / "checkpoints").glob(f"[0-9]*[0-9]/{STATE}"))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, list[str]]]:
    """Restore model and optimizer; return (steps done, fingerprints of the caches). Raises ModelError if damaged."""
    runs.load_weights(model, folder / MODEL)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        step, caches = state["step"], state["caches"]
        flat = load_file(folder / OPTIMIZER)
        for name, parameter in model.named_parameters():
            if f"{name}/step" in flat:
                optimizer.state[parameter] = {
                    "step": flat[f"{name}/step"].to(parameter.device),
                    **{field: _like(flat[f"{name}/{field}"], parameter) for field in ("exp_avg", "exp_avg_sq")},
                }
    except Exception as error:  # safetensors, JSON and file errors: all mean the same to the user
        raise ModelError(
            f"{folder}: the checkpoint is damaged ({error}); remove it to resume from the one before"
        ) from error
    return step, caches


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return ``value`` laid out in memory as ``parameter``: the fused optimizer goes through both as they lie."""
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{field}": value
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    }
