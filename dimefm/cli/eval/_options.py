"""Options that the commands of ``dimefm eval`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

MODEL_KEYS = ("text_model", "preprocess")
MACHINE_KEYS = ("device", "precision", "batch_size", "workers", "decoder")
"""Keys of an evaluation whose options say how the model is loaded, and how it is run."""

FOLDER = click.Path(file_okay=False, path_type=Path)
ANY_SPEC = "a run folder, ARCH/TAG of open_clip, or any other --teacher SPEC."

Decorator = Callable[[Callable], Callable]


def model_option(role: str = "Model to score") -> Decorator:
    """Return the option ``--model``, which must be given; ``role`` begins its help."""
    return click.option("--model", required=True, metavar="SPEC", help=f"{role}: {ANY_SPEC}")


def out_option(contents: str) -> Decorator:
    """Return the option ``--out``, which must be given; ``contents`` is what the folder gets."""
    return click.option("--out", required=True, type=FOLDER, help=f"Folder to write: {contents}")


def root_option(help_text: str) -> Decorator:
    """Return the option ``--root``, which must be given, as a path."""
    return click.option("--root", required=True, metavar="DIR", type=FOLDER, help=help_text)
