"""Checkpoints: a folder per step, complete or absent, without pickle; and the folder of the best
weights so far.

``SHA256SUMS`` seals a checkpoint: it has the digest of every other file, as ``sha256sum`` writes
them. Checkpoints of earlier versions have no seal and are checked as far as they can be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from dimefm.runs import folder as runs
from dimefm.storage.files import sha256_file, sync_folder, to_json, write_text
from dimefm.train.checkpoint_folders import checkpoints, folders
from dimefm.train.early_stopping import EarlyStopping
from dimefm.train.ema import Ema
from dimefm.train.saved import AVERAGE, MODEL, OPTIMIZER, SEAL, STATE, VERSION, load

__all__ = [
    "best",
    "checkpoints",
    "folders",
    "load",
    "save",
    "save_best",
    "set_aside",
]
SET_ASIDE = ".damaged"  # ending of the folders that no run resumes from


def save(
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    caches: dict[str, list[str]],
    ema: Ema | None = None,
    watch: EarlyStopping | None = None,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Write ``out/checkpoints/STEP`` (after ``step`` optimizer steps) and drop all but the ``keep``
    newest.

    ``caches`` are the fingerprints of what the run learns from, ``facts`` further JSON values of
    ``state.json``. An error, as of a full disk, leaves the checkpoints that were there.
    """
    folder = out / "checkpoints" / f"{step:08d}"
    part = folder.with_name(f"unfinished-{folder.name}.part")  # no listing takes it for whole
    marks = {"step": str(step)}
    state: dict[str, object] = {"version": VERSION, "step": step, "caches": caches}
    state |= facts or {}
    if watch is not None:
        state["watch"] = watch.state()
    with _filled(part):
        runs.save_tensors(model.state_dict(), part / MODEL, marks)
        runs.save_tensors(_flatten(model, optimizer), part / OPTIMIZER, marks)
        if ema is not None:
            runs.save_tensors(ema.state_dict(), part / AVERAGE, marks)
        write_text(part / STATE, to_json(state))
        write_text(part / SEAL, seal_of(part))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    sync_folder(folder.parent)
    for old in checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def seal_of(folder: Path) -> str:
    """Return the text of a checkpoint's seal: a line with digest and name for each file."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != SEAL:
            lines.append(f"{sha256_file(path)}  {path.name}\n")
    return "".join(lines)


def set_aside(out: Path, step: int) -> None:
    """Rename the checkpoints of later steps than ``step``, from which the run is resumed.

    Otherwise they would count among the newest ones, which are kept.
    """
    for folder in folders(out):
        if int(folder.name) > step:
            aside = folder.with_name(folder.name + SET_ASIDE)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)


def remove_parts(out: Path) -> None:
    """Remove what a killed process left half-written in the run folder ``out``."""
    for part in [*out.glob("*.part"), *(out / "checkpoints").glob("*.part")]:
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


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


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{field}": value
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    }
