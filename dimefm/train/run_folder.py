"""Whether the folder of a run may be used, and whether the run in it is finished or has failed."""

from __future__ import annotations

import math
from pathlib import Path

from dimefm.errors import DimefmError, ModelError, RecipeError
from dimefm.recipe import Recipe, changed, changed_records, read
from dimefm.runs import folder as runs
from dimefm.storage.locks import Claim, claim_alone, owner_of
from dimefm.storage.out_folder import refuse_foreign
from dimefm.train import checkpoint
from dimefm.train.checkpoint_folders import LOCK, MARKS


def why_finished(recipe: Recipe, out: Path) -> str:
    """Return a human-readable reason why ``out`` needs no more training, "" when it needs some.

    A run of this recipe that ended early is finished until the recipe has more patience.
    """
    if not (out / runs.FILE).exists() or changed(recipe, read(out / "recipe.toml")):
        return ""
    without_improvement = runs.read(out).without_improvement
    if without_improvement is None:
        others = changed_records(recipe, read(out / "recipe.toml"))
        note = f" (other settings of this call: {'; '.join(others)})" if others else ""
        return f"{out}: finished already; nothing to do{note}"
    if recipe.patience is None or recipe.patience > without_improvement:
        return ""
    return (
        f"{out}: ended early, evaluations in a row that were no better: {without_improvement};"
        " a larger --patience resumes it"
    )


def hold(out: Path) -> Claim:
    """Keep other processes from training into ``out`` until the claim is released.

    Raises ModelError when another process trains there, or nothing can be written there, and
    DimefmError when the folder holds something else than a run.
    """
    refuse_foreign(out, "run", MARKS)
    try:
        held = claim_alone(out / LOCK)
    except OSError as error:
        raise ModelError(
            f"{out}: cannot be made ({error.strerror}). Fix: choose another --out"
        ) from error
    if held is None:
        raise ModelError(
            f"{out}: another process trains there ({owner_of(out / LOCK)}). Fix: wait until it has"
            " ended, or choose another --out"
        )
    return held


def claim(recipe: Recipe, out: Path, resume: bool) -> None:
    """Make ``out`` the folder of this run.

    Raises ModelError when it holds a finished or unfinished run that is not to be resumed, and
    RecipeError when the run to resume has another recipe.
    """
    if (out / runs.FILE).exists():
        different = changed(recipe, read(out / "recipe.toml"))
        if not resume or different:
            others = f" (its recipe is another one: {'; '.join(different)})" if different else ""
            raise ModelError(
                f"{out}: holds a finished run already. Fix: choose another --out{others[:300]}"
            )
        if not checkpoint.checkpoints(out):
            raise ModelError(
                f"{out}: holds a finished run without checkpoints to resume. Fix: choose another"
                " --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"{out}: cannot be made ({error.strerror}). Fix: choose another --out"
        ) from error
    if not checkpoint.checkpoints(out):
        return
    if not resume:
        raise ModelError(
            f"{out}: holds an unfinished run. Fix: pass --resume to continue it, or choose another"
            " --out"
        )
    different = changed(recipe, read(out / "recipe.toml"))
    if different:
        raise RecipeError(
            f"{out}: the run to resume has another recipe ({'; '.join(different)}: this call"
            " against the run). Fix: resume with the saved recipe, or use another --out"
        )


def refuse_not_finite(out: Path, step: int, total: float, norm: float) -> None:
    """Raise DimefmError before the optimizer applies a loss or gradient that is not finite."""
    if math.isfinite(total) and math.isfinite(norm):
        return
    fault = f"the gradient's norm is {norm}"
    if not math.isfinite(total):
        fault = f"the loss is {total}"
    last = "no checkpoint was written yet"
    checkpoints = checkpoint.checkpoints(out)
    if checkpoints:
        last = f"the last good checkpoint is {checkpoints[-1]}"
    raise DimefmError(f"step {step + 1}: {fault}; {last}. Fix: lower --lr or set --grad-clip-norm")
