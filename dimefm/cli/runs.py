"""``dimefm runs``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result


@click.group("runs", context_settings=CONTEXT)
def command():
    """List and compare training runs, finished or not."""


@command.command(
    "compare",
    context_settings=CONTEXT,
    short_help="Compare the scores and the settings of runs.",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File for the plot (.png), or folder for the plot and the tables.",
)
def compare(runs, out):
    """Compare runs: print their scores, and the recipe keys in which they differ.

    With --out, plot the loss and the scores of all runs over their steps. A folder gets
    compare.png, compare.csv and compare.md. The table includes scores that dimefm eval wrote into
    a run folder or into one of its subfolders.

    \b
    Example:
      dimefm runs compare runs/first runs/second --out compared
    """
    from dimefm.runs.compare import as_dict, read_runs, text, write

    compared = read_runs(runs)
    result(text(compared))
    files = []
    if out is not None:
        files = write(compared, out)
        result("\nwritten: " + ", ".join(map(str, files)))
    return {"runs": [as_dict(run) for run in compared], "files": files}


@command.command("list", context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
def list_(folder):
    """List the runs in FOLDER with their steps and scores.

    \b
    Example:
      dimefm runs list runs
    """
    from dimefm.runs.compare import as_dict, listing, runs_below

    below = runs_below(folder)
    result(listing(below))
    return [as_dict(run) for run in below]


@command.command(
    "kept", context_settings=CONTEXT, short_help="Show what a cut left of the student of a run."
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File for a chart (.png).")
def kept(run, out):
    """Show what a cut left of the student of RUN: channels, and heads and hidden units of each
    layer.

    \b
    Example:
      dimefm runs kept runs/75 --out kept.png
    """
    from dimefm.runs.kept import as_dict, draw, read_kept, text

    towers = read_kept(run)
    result(text(towers))
    files = []
    if out is not None:
        draw(towers, out, str(run))
        files.append(out)
        result(f"\nwritten: {out}")
    return {"towers": [as_dict(tower) for tower in towers], "files": files}
