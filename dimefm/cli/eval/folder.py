"""``dimefm eval folder``: a folder of one's own, which is one dataset."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT, ManyValues
from dimefm.cli._output import result
from dimefm.cli._recipe_options import evaluation_options
from dimefm.cli.eval._options import MACHINE_KEYS, MODEL_KEYS, model_option, out_option, root_option
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.runtime import console
from dimefm.storage.out_folder import refuse_foreign

HEADINGS = {
    "--model": "Model and output",
    "--root": "Dataset",
    "--text-model": "Model, in detail",
    "--device": "Machine",
}
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "folder",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=HEADINGS,
    short_help="Score a model on one folder of your own.",
)
@model_option()
@out_option("scores.json, report.md, per_class.csv, wrong.jsonl and the embeddings.")
@root_option("Folder of the dataset: CLASS/IMAGE, test/CLASS/IMAGE, a Parquet file, or tars.")
@click.option(
    "--split",
    metavar="NAME",
    help="Split to score: test, val or train.  [default: test, else val]",
)
@click.option(
    "--classnames",
    type=FILE,
    help="Text file of class names, in label order.  [default: classnames.txt, else the folders]",
)
@click.option(
    "--templates",
    type=FILE,
    help="Text file of prompt templates with {} for the name.  [default: templates.txt]",
)
@click.option(
    "--template",
    "template",
    multiple=True,
    metavar="TEXT",
    help='Prompt template, any number of times.  [default: "a photo of a {}."]',
)
@click.option(
    "--metric",
    type=click.Choice(Eval.schema_keys()["metric"].choices),
    default="accuracy",
    help="Metric to quote; map_11_point is for images with several labels.  [default: accuracy]",
)
@click.option("--layout", metavar="NAME", help="Layout of the folder.  [default: detected]")
@evaluation_options(*MODEL_KEYS, *MACHINE_KEYS)
def command(model, out, root, split, classnames, templates, template, **flags):
    """Score a model zero-shot on the dataset that --root is: one folder of images for each class.

    The name of each folder is the name of its class; underscores become blanks. With split folders,
    DIR/test is scored. A Parquet file or tars with labels are taken, too. No benchmark card is
    used, whatever the folder is called: dimefm eval elevater does that.

    The score is over the images that can be read. Images that cannot be read are counted, and the
    score with them as wrong answers is printed, too.

    \b
    Example:
      dimefm eval folder --model runs/first --root holdout --out scores/holdout
      dimefm eval folder --model ViT-B-32/openai --root holdout --out scores/clip \\
             --template "a photo of a {}." "a close-up of a {}." --metric mean_per_class
    """
    if templates is not None and template:
        raise click.UsageError("--templates and --template exclude each other. Fix: remove one")
    refuse_unknown_models(model, flags["text_model"])
    refuse_foreign(out, "scores", SCORE_MARKS)
    chosen = {name: value for name, value in flags.items() if value is not None}
    request = Eval(**chosen)

    from dimefm.evaluate.datasets.own_folder import Choices, open_folder
    from dimefm.evaluate.folder import score_folder
    from dimefm.evaluate.preparing import settings_of
    from dimefm.models.loading import load_encoder

    choices = Choices(classnames, templates, template, request.metric, request.layout, split)
    dataset = open_folder(root, choices)
    encoder = load_encoder(
        model, request.device, request.precision, request.text_model, request.preprocess
    )
    for note in encoder.notes:
        console.note(note)
    settings = settings_of(request.batch_size, request.workers, request.decoder)
    scored = score_folder(encoder, dataset, out, settings)
    result(scored.terminal())
    result(f"\nwritten: {out / SCORES}, {out / REPORT}")
    return scored.scores.to_json()
