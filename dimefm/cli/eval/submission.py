"""``dimefm eval submission``: the file that ELEVATER's server takes."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT, ManyValues
from dimefm.cli._output import result

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(
    "submission",
    cls=ManyValues,
    context_settings=CONTEXT,
    short_help="Write ELEVATER's submission file.",
)
@click.argument("folders", metavar="SCORES_DIR...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Zip file to write, e.g. all_predictions.zip.",
)
@click.option(
    "--task",
    metavar="NAME",
    help="Task to submit, as in the table of scores.  [default: the only one]",
)
@click.option(
    "--datasets",
    multiple=True,
    metavar="NAME...",
    help="Datasets to submit.  [default: all with predictions]",
)
@click.option(
    "--index",
    type=FOLDER,
    help="Folder with the official index of each dataset, to put images in its order by name.",
)
@click.option("--model-name", metavar="NAME", help="Name of the model.  [default: that of scores]")
@click.option("--files", type=FOLDER, help="Folder to write, too: one JSON file for each dataset.")
def command(folders, out, task, datasets, index, model_name, files):
    """Write the predictions in SCORES_DIR as the zip file that ELEVATER's server takes, and run
    the server's checks on them.

    SCORES_DIR is the --out of dimefm eval elevater. Several folders may hold the seeds or the
    datasets of one model. Nothing is written when a check fails.

    \b
    Example:
      dimefm eval submission runs/first/scores --out all_predictions.zip
      dimefm eval submission probes --task "linear probe, 5-shot" --index datasets \\
             --out all_predictions.zip
    """
    from dimefm.evaluate import submission
    from dimefm.evaluate.submission_report import report

    by_dataset = submission.read_folders(folders, task, datasets)
    size = submission.size_of(folders[0], model_name)
    entries, others = submission.entries_of(by_dataset, index)
    text, facts = report(entries, others, size)
    submission.write(out, entries, size)
    if files is not None:
        for entry in entries:
            submission.write_one(files / f"{entry.card.name}.json", entry, size)
    result(text)
    result(f"\nwritten: {out}")
    return facts
