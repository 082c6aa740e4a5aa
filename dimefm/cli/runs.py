"""``dimefm runs``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT


@click.group("runs", context_settings=CONTEXT)
def command():
    """Look at training runs, finished or not."""


@command.command(
    "compare",
    context_settings=CONTEXT,
    short_help="Put runs side by side: their scores, their settings.",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Gets the curves: a .png, or a folder for tables too.",
)
def compare(runs, out):
    """Put runs side by side: what they score, and what their recipes differ in.

    With --out the loss and the scores of all runs are plotted over their steps; a folder gets
    compare.png, compare.csv and compare.md. Scores that dimefm eval wrote into a run folder, or a
    folder in it, are in the table.

    \b
    Example:
      dimefm runs compare runs/first runs/second --out compared
    """
    from dimefm.runs.compare import read_runs, text, write

    found = read_runs(runs)
    click.echo(text(found))
    if out is not None:
        click.echo("\nwritten: " + ", ".join(map(str, write(found, out))))


@command.command("list", context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
def list_(folder):
    """List the runs in FOLDER: how far each came, and what it scores.

    \b
    Example:
      dimefm runs list runs
    """
    from dimefm.runs.compare import listing, runs_below

    click.echo(listing(runs_below(folder)))
