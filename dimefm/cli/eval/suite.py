"""``dimefm eval suite``: clip-benchmark's folders and DataComp's tasks."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT, ManyValues
from dimefm.cli._output import document, result, settings
from dimefm.cli._recipe_options import evaluation_options
from dimefm.cli.eval._options import MACHINE_KEYS, MODEL_KEYS, model_option, out_option, root_option
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.runtime import console
from dimefm.storage.out_folder import refuse_foreign

HEADINGS = {
    "--model": "Model and output",
    "--root": "Datasets",
    "--text-model": "Model, in detail",
    "--device": "Machine",
}
KEYS = (*MODEL_KEYS, *MACHINE_KEYS)


@click.command(
    "suite",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=HEADINGS,
    short_help="Score a model on clip-benchmark's folders or DataComp's tasks.",
)
@model_option()
@out_option("scores.json, report.md, clip_benchmark.jsonl, results.csv, embeddings.")
@root_option("Folder that holds wds_NAME folders, or one of them.")
@click.option(
    "--suite",
    "suite_name",
    type=click.Choice(("wds", "datacomp")),
    default="wds",
    help="Suite: all folders, or DataComp's tasks with their main metrics.  [default: wds]",
)
@click.option(
    "--datasets",
    multiple=True,
    metavar="NAME",
    help="Datasets to score: cifar10, vtab/cifar10, wds_vtab-cifar10.  [default: all found]",
)
@evaluation_options(*KEYS)
def command(model, out, root, suite_name, datasets, **flags):
    """Score a model on folders of clip-benchmark or DataComp: wds_NAME/test/0.tar, ...

    Class names and templates are those in the folder. The scores are also written as the JSON lines
    and the CSV of clip-benchmark, and as the lines of DataComp (datacomp.jsonl). A dataset that
    cannot be read is listed with its reason, and the others are scored.

    \b
    Example:
      dimefm eval suite --model runs/first --root webdatasets --out scores/suite
      dimefm eval suite --model ViT-B-32/openai --root datacomp_eval \\
             --suite datacomp --datasets vtab/cifar100 wilds/fmow --out scores/dc
    """
    chosen = {name: value for name, value in flags.items() if value is not None}
    request = Eval(**chosen)
    refuse_unknown_models(model, request.text_model)
    refuse_foreign(out, "scores", SCORE_MARKS)

    from dimefm.evaluate import score_tables
    from dimefm.evaluate.preparing import refuse_unscored, settings_of
    from dimefm.evaluate.suites import job
    from dimefm.models.loading import load_encoder

    names = [name for value in datasets for name in value.split(",") if name.strip()]
    suite = job.open_suite(root, suite_name, names or None)
    encoder = load_encoder(
        model, request.device, request.precision, request.text_model, request.preprocess
    )
    for note in encoder.notes:
        console.note(note)
    encoding = settings_of(request.batch_size, request.workers, request.decoder)
    scores = job.score_suite(encoder, suite, out, encoding)
    result(score_tables.terminal(scores))
    result(f"\nwritten: {out / SCORES}, {out / REPORT}, {out / 'results.csv'}")
    try:
        refuse_unscored(scores, root, names or None)
    except Exception:
        if settings(click.get_current_context()).json:
            click.echo(document(scores.to_json()))
        raise
    return scores.to_json()
