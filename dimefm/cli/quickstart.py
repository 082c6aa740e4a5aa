"""``dimefm quickstart``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT


@click.command(
    "quickstart", context_settings=CONTEXT, short_help="All of it on small real data, in minutes."
)
@click.option(
    "--out",
    default="quickstart",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Seed of data, weights and order.",
)
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.02, 1.0),
    help="Share of the rows and steps; below 1 it shows the way, not the accuracy.",
)
def command(out, seed, scale):
    """Run the main job on small real data: no network, no GPU, a few minutes.

    Trains a small teacher on handwritten digits and drawn scenes, extracts its features, distils a
    student several times smaller from unpaired images and sentences, and scores both zero-shot.

    Example: dimefm quickstart --out quickstart
    """
    from dimefm.quickstart.run import quickstart

    quickstart(out, seed, click.echo, scale)
