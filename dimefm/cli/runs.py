"""``dimefm runs``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT, ManyValues
from dimefm.cli._output import result


@click.group("runs", context_settings=CONTEXT)
def command():
    """List and compare training runs, finished or not."""


@command.command(
    "compare",
    cls=ManyValues,
    context_settings=CONTEXT,
    short_help="Compare the scores and the settings of runs.",
)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--scores",
    multiple=True,
    metavar="DIR...",
    type=click.Path(path_type=Path),
    help="More scores, of these runs or of other models: a scores.json, or a folder above them.",
)
@click.option("--latex", is_flag=True, help="Print a LaTeX table of the scores.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table of the scores.")
@click.option("--transpose", is_flag=True, help="Make the models the columns of that table.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File for the plot (.png), or folder for the plot and the tables.",
)
@click.pass_context
def compare(context, runs, scores, latex, markdown, transpose, out):
    """Compare runs: print their scores, and the recipe keys in which they differ.

    Runs that differ only in their seed are one column: mean ± sample standard deviation. With
    --out, plot the loss and the scores of all runs over their steps. A folder gets compare.png,
    compare.csv and compare.md, and of scores compare.tex.

    The table includes scores that dimefm eval wrote into a run folder, below it, or into a folder
    next to it or in --scores: these are matched to the runs by the digest of their weights. Other
    models in --scores have columns of their own.

    For a paper, --latex and --markdown print a table with the best of each score in bold.

    \b
    Example:
      dimefm runs compare runs/first runs/second --out compared
      dimefm runs compare runs/seed0 runs/seed1 runs/seed2 --scores scores/teacher --latex
    """
    if not runs and not scores:
        raise click.UsageError("Missing argument 'RUN...'.", context)
    if latex and markdown:
        raise click.UsageError("--latex and --markdown: expected one of them.", context)
    from dimefm.runs.compare import Comparison, as_dict, for_paper, read_runs, text, write

    compared = Comparison.of(read_runs(runs), scores)
    if latex or markdown:
        form = "latex" if latex else "markdown"
        result(for_paper(compared, form, transpose).rstrip())
    else:
        result(text(compared))
    files = []
    if out is not None:
        files = write(compared, out)
        result("\nwritten: " + ", ".join(map(str, files)))
    return {
        "runs": [as_dict(run) for run in compared.runs],
        "columns": [column.as_dict() for column in compared.columns()],
        "files": files,
    }


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
