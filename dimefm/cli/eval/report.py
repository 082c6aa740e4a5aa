"""``dimefm eval report``: scores of any evaluations as one page."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT, ManyValues, refuse_absent_root
from dimefm.cli._output import result
from dimefm.runtime import console


@click.command(
    "report",
    cls=ManyValues,
    context_settings=CONTEXT,
    short_help="Show scores as one page.",
)
@click.argument("scores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Page to write, or a folder for it; its tables are written beside it as .md and .csv.",
)
@click.option(
    "--teacher",
    metavar="NAME",
    help="Scored model that the others are compared with.  [default: the one that a run names]",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="DIR...",
    type=click.Path(path_type=Path),
    help="Folders of the datasets, to show pictures of mistakes and finds.  [default: text only]",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    default=48,
    show_default=True,
    metavar="N",
    help="Number of pictures of each kind at most.",
)
def command(scores, out, teacher, roots, pictures):
    """Write a page about SCORES: files scores.json of any dimefm eval, or folders that hold them.

    The page shows the scores of all models, what they cost, and where they come from. It is one
    file, needs no network, and has its numbers as JSON and CSV for download.

    \b
    Example:
      dimefm eval elevater --model runs/first --root datasets --out runs/first/scores
      dimefm eval elevater --model ViT-L-14/openai --root datasets --out scores/teacher
      dimefm eval report runs/first scores/teacher --out report.html
    """
    for root in roots:
        refuse_absent_root(root)

    from dimefm.evaluate.report.build import build

    summary = build(list(scores), out, teacher, roots, pictures)
    for note in summary["notes"]:
        console.note(note)
    written = ", ".join(summary[kind] for kind in ("page", "markdown", "csv"))
    result(f"written: {written}")
    return summary
