"""TensorBoard and Weights & Biases, which get a run's figures in addition to ``log.jsonl``.

A recipe names them in ``report_to``; they must be installed.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from dimefm.errors import RecipeError
from dimefm.recipe import Recipe
from dimefm.runtime.printable import masked
from dimefm.storage.files import write_text

WANDB_ID = "wandb.id"


class TensorBoard:
    """Writes event files into ``out/tensorboard``.

    Figures that an interrupted run wrote after step ``start`` are hidden.
    """

    def __init__(self, out: Path, recipe: Recipe, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write the remaining figures and close the files."""
        self._writer.close()


class Wandb:
    """Sends figures to a run of Weights & Biases, in ``out/wandb``, named like the run folder.

    A resumed run keeps its id. ``WANDB_MODE=offline`` needs no network, ``WANDB_PROJECT`` names
    another project than "dimefm". Steps that an interrupted run sent already are not sent again.
    Raises RecipeError when wandb does not start.
    """

    def __init__(self, out: Path, recipe: Recipe, start: int):
        import wandb

        id_file = out / WANDB_ID
        if not id_file.exists():
            write_text(id_file, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "dimefm"),
                name=out.resolve().name,
                id=id_file.read_text(encoding="utf-8"),
                dir=str(out.resolve()),
                config=_shown_settings(recipe),
                resume="allow",
            )
        except Exception as error:  # wandb raises what its service and its settings raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RecipeError(
                f"--report-to wandb: it does not start ({reason}). Fix: run wandb login, or set"
                " WANDB_MODE=offline"
            ) from error

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send the remaining figures and end the run."""
        self._run.finish()


def _shown_settings(recipe: Recipe) -> dict:
    """Return the settings of a recipe as plain values, without passwords in their URLs."""
    return json.loads(masked(json.dumps(recipe.settings())))


MetricLogger = TensorBoard | Wandb
KNOWN: dict[str, type[MetricLogger]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}  # package -> logger


def names_of(recipe: Recipe) -> list[str]:
    """Return the names in ``report_to``, a comma list."""
    names = []
    for part in recipe.report_to.split(","):
        if part.strip():
            names.append(part.strip())
    return names


def check(recipe: Recipe) -> None:
    """Raise RecipeError, with how to install it, when a package of ``report_to`` is missing."""
    for name in names_of(recipe):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RecipeError(
                f"--report-to {name}: {name} is not installed. Fix: pip install 'dimefm[log]'"
            ) from error


def opened(recipe: Recipe, out: Path, start: int) -> list[MetricLogger]:
    """Return the loggers of ``report_to`` for a run that has done ``start`` steps.

    Raises RecipeError as :func:`check` does.
    """
    check(recipe)
    return [KNOWN[name](out, recipe, start) for name in names_of(recipe)]
