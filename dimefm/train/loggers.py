"""Where a run's figures go besides ``log.jsonl``: TensorBoard and Weights & Biases, when asked and
installed.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from dimefm.errors import RecipeError
from dimefm.recipe import Recipe
from dimefm.storage.files import write_text

WANDB_ID = "wandb.id"


class TensorBoard:
    """Event files in ``out/tensorboard``; what an interrupted run wrote from step ``start`` + 1 on
    is hidden.
    """

    def __init__(self, out: Path, recipe: Recipe, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, in ``out/wandb``, named like the run folder; a resumed run goes on
    under its id.

    ``WANDB_MODE=offline`` needs no network, ``WANDB_PROJECT`` names another project than "dimefm".
    Steps that an interrupted run sent already are not sent again. Raises RecipeError when wandb
    refuses to begin.
    """

    def __init__(self, out: Path, recipe: Recipe, start: int):
        import wandb

        at = out / WANDB_ID
        if not at.exists():
            write_text(at, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "dimefm"),
                name=out.resolve().name,
                id=at.read_text(encoding="utf-8"),
                dir=str(out.resolve()),
                config=recipe.settings(),
                resume="allow",
            )
        except Exception as error:  # wandb raises what its service and its settings raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RecipeError(
                f"--report-to wandb: it does not begin ({reason}); run wandb login, or set"
                " WANDB_MODE=offline"
            ) from error

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


MetricLogger = TensorBoard | Wandb
KNOWN: dict[str, type[MetricLogger]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}  # package -> board


def asked(recipe: Recipe) -> list[str]:
    """Return the names in ``report_to``, a comma list."""
    return [name.strip() for name in recipe.report_to.split(",") if name.strip()]


def check(recipe: Recipe) -> None:
    """Raise RecipeError, with how to install it, when something that ``report_to`` names is not
    there.
    """
    for name in asked(recipe):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RecipeError(
                f"--report-to {name}: {name} is not installed; pip install 'dimefm[log]'"
            ) from error


def opened(recipe: Recipe, out: Path, start: int) -> list[MetricLogger]:
    """Return the boards that ``report_to`` names, for a run that has done ``start`` steps; raises
    as :func:`check` does.
    """
    check(recipe)
    return [KNOWN[name](out, recipe, start) for name in asked(recipe)]
