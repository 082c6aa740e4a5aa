"""``dimefm quickstart``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result


@click.command(
    "quickstart",
    context_settings=CONTEXT,
    short_help="Run the whole pipeline on a small dataset in minutes.",
)
@click.option(
    "--out",
    default="quickstart",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Seed of the data, the weights and the order of samples.",
)
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.02, 1.0),
    metavar="SHARE",
    help="Share of the samples and steps to run; below 1 the scores mean little.",
)
def command(out, seed, scale):
    """Run the whole pipeline on a small dataset: no network, no GPU, a few minutes.

    Train a small teacher on handwritten digits and drawn scenes, cache its embeddings, distil them
    into a student that is several times smaller, and score both models zero-shot. The images and
    the texts of the distillation are unpaired.

    \b
    Example:
      dimefm quickstart --out quickstart
    """
    from dimefm.quickstart.run import quickstart

    return quickstart(out, seed, result, scale)
