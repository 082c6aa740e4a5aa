"""``dimefm eval``. The options that describe an evaluation come from its schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from dimefm.cli._options import CONTEXT, ManyValues, refuse_absent_root
from dimefm.cli._output import document, result, settings
from dimefm.cli._recipe_options import section_options
from dimefm.cli.eval._options import model_option, out_option
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.runtime import console
from dimefm.storage.out_folder import refuse_foreign

HEADINGS = {
    "--model": "Model and output",
    "--root": "Datasets",
    "--zero-shot": "Tasks",
    "--by": "Protocol",
    "--device": "Machine",
}


@click.command(
    "elevater",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=HEADINGS,
    short_help="Score a model on datasets: zero-shot and probes.",
)
@model_option()
@out_option(
    "scores.json, report.md, per_class.csv, wrong.jsonl and the embeddings."
    " runs compare finds it in a run folder."
)
@section_options(Eval, required=("root",))
def command(model, out, **flags):
    """Score a model on the datasets in --root: the 20 of ELEVATER, and any other dataset that has a
    card. Without --datasets the mean is over the ELEVATER datasets.

    Without a task, the model is scored zero-shot. Probes are trained on the embeddings of the
    images in a dataset's train split.

    A dataset is an image folder, Parquet, webdataset tars, or a vision-datasets folder. A
    classnames.txt or templates.txt in the folder of a dataset replaces the built-in file. A folder
    without a card is scored when --datasets names it; its class folders name the classes. The
    embeddings are saved in --out, so a second run is fast.

    With --by tokens, patches are compared with words, as FILIP does. This needs a run that trained
    with declip.filip, and saves no embeddings.

    \b
    Example:
      dimefm eval elevater --model runs/first --root datasets --out runs/first/scores
      dimefm eval elevater --model ViT-B-32/openai --root datasets \\
             --datasets my_photos cifar-10 --metric mean_per_class --out scores
      dimefm eval elevater --model runs/first --root datasets --out probes \\
             --zero-shot --linear-probe --few-shot 5,20,50
    """
    chosen = {name: value for name, value in flags.items() if value not in (None, ())}
    names = _names(flags["datasets"])
    if names is not None:
        chosen["datasets"] = tuple(names)
    request = Eval(**chosen)
    refuse_unknown_models(model, request.text_model)
    refuse_absent_root(request.root)
    refuse_foreign(out, "scores", SCORE_MARKS)

    from dimefm.evaluate.preparing import refuse_unscored
    from dimefm.evaluate.requests import refuse_impossible, score, terminal
    from dimefm.models.loading import load_encoder

    refuse_impossible(request)
    encoder = load_encoder(
        model, request.device, request.precision, request.text_model, request.preprocess
    )
    for note in encoder.notes:
        console.note(note)
    scores = score(model, encoder, request, out, names)
    result(terminal(scores))
    result(f"\nwritten: {out / SCORES}, {out / REPORT}")
    try:
        refuse_unscored(scores, Path(str(request.root)), names)
    except Exception:
        if settings(click.get_current_context()).json:
            click.echo(document(scores.to_json()))
        raise
    return scores.to_json()


def _names(values: Sequence[str]) -> list[str] | None:
    """Return the datasets that are asked for, with commas or blanks between them; None for all."""
    if not values:
        return None
    names = [name.strip() for value in values for name in value.split(",")]
    return [name for name in names if name]
