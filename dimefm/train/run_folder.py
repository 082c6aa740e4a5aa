"""The folder of a run: whether it may be used, and whether what it holds is over."""

from __future__ import annotations

from pathlib import Path

from dimefm.errors import ModelError, RecipeError
from dimefm.recipe import Recipe, changed, read
from dimefm.runs import folder
from dimefm.train import checkpoint


def over(recipe: Recipe, out: Path) -> str:
    """Return, for people, why there is nothing to do for ``recipe`` in ``out``, "" when there is.

    A run of this recipe that ran out of patience is over until it is given more.
    """
    if not (out / folder.FILE).exists() or changed(recipe, read(out / "recipe.toml")):
        return ""
    without = folder.read(out).get("without_improvement")
    if without is None:
        return f"{out}: finished already; nothing to do"
    if recipe.patience is None or recipe.patience > without:
        return ""
    return (
        f"{out}: ended early, evaluations in a row that were no better: {without}; a larger"
        " --patience goes on"
    )


def claim(recipe: Recipe, out: Path, resume: bool) -> None:
    """Make ``out`` this run's folder; raise when it holds a finished, unfinished or different run.

    One that is not :func:`over` goes on from its last checkpoint; without any it stays what it is.
    """
    if (out / folder.FILE).exists():
        if not resume or changed(recipe, read(out / "recipe.toml")):
            raise ModelError(f"{out}: holds a finished run already; choose another --out")
        if not checkpoint.checkpoints(out):
            raise ModelError(
                f"{out}: holds an ended run without checkpoints to go on from; choose another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"{out}: cannot be made ({error.strerror}); choose another --out"
        ) from error
    if not checkpoint.checkpoints(out):
        return
    if not resume:
        raise ModelError(
            f"{out}: holds an unfinished run; go on with --resume, or choose another --out"
        )
    different = changed(recipe, read(out / "recipe.toml"))
    if different:
        raise RecipeError(
            f"{out}: the run to resume has another recipe ({'; '.join(different)}: this call"
            " against the run); say what the run says, or choose another --out"
        )
