"""``dimefm eval imagenet``: ImageNet-1k and its five variants."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT, ManyValues, refuse_absent_root
from dimefm.cli._output import document, result, settings
from dimefm.cli._recipe_options import evaluation_options
from dimefm.cli.eval._options import MACHINE_KEYS, MODEL_KEYS, model_option, out_option
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.runtime import console
from dimefm.storage.out_folder import refuse_foreign

HEADINGS = {
    "--model": "Model and output",
    "--root": "Datasets",
    "--convention": "Protocol",
    "--text-model": "Model, in detail",
    "--device": "Machine",
}
KEYS = (*MODEL_KEYS, *MACHINE_KEYS)
CONVENTIONS = ("own", "masked")


@click.command(
    "imagenet",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=HEADINGS,
    short_help="Score a model on ImageNet and its variants.",
)
@model_option()
@out_option(
    "scores.json, report.md, robustness.png, per_class.csv, wrong.jsonl and the embeddings."
)
@click.option(
    "--root",
    required=True,
    metavar="DIR",
    help="Folder with one folder per dataset: imagenet-1k, imagenet-v2, imagenet-r, ...",
)
@click.option(
    "--datasets",
    multiple=True,
    metavar="NAME...",
    help="Benchmarks or folders in it.  [default: those of the six that are found]",
)
@click.option("--layout", metavar="NAME", help="Layout of the datasets.  [default: detected]")
@click.option(
    "--convention",
    type=click.Choice(CONVENTIONS),
    default="own",
    help=(
        "Class names: each dataset's own, as DIME-FM evaluates, or those of the 1000 classes with"
        " the others masked.  [default: own]"
    ),
)
@evaluation_options(*KEYS)
def command(model, out, root, datasets, layout, convention, **flags):
    """Score a model zero-shot on ImageNet-1k, ImageNetV2, ImageNet-R, ImageNet-A, ImageNet-Sketch
    and ObjectNet: those that are found in --root.

    The mean of all five variants is called average robustness. Where ImageNet-1k is scored, too,
    effective robustness is how far each score lies above the line that ImageNet-trained models
    follow; robustness.png shows it. The embeddings are saved in --out, so a second run is fast.

    \b
    Example:
      dimefm eval imagenet --model runs/first --root datasets --out scores/first
      dimefm eval imagenet --model ViT-B-32/openai --root datasets \\
             --datasets imagenet-1k imagenet-r --convention masked --out scores/clip
    """
    refuse_unknown_models(model, flags["text_model"])
    refuse_absent_root(root)
    refuse_foreign(out, "scores", SCORE_MARKS)
    chosen = {name: value for name, value in flags.items() if value is not None}
    request = Eval(**chosen)
    names = [name.strip() for value in datasets for name in value.split(",") if name.strip()]

    from dimefm.evaluate.imagenet import job, report
    from dimefm.evaluate.preparing import refuse_unscored, settings_of
    from dimefm.models.loading import load_encoder

    encoder = load_encoder(
        model, request.device, request.precision, request.text_model, request.preprocess
    )
    for note in encoder.notes:
        console.note(note)
    scores = job.evaluate(
        encoder,
        Path(root),
        out,
        names or None,
        convention=convention,
        layout=layout,
        settings=settings_of(request.batch_size, request.workers, request.decoder),
    )
    result(report.terminal(scores, report.places_of(scores.results)))
    result(f"\nwritten: {out / SCORES}, {out / REPORT}")
    try:
        refuse_unscored(scores, Path(root), names or None)
    except Exception:
        if settings(click.get_current_context()).json:
            click.echo(document(scores.to_json()))
        raise
    return scores.to_json()
