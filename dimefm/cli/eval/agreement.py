"""``dimefm eval agreement``: a student against its teacher on the same images."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT, ManyValues, refuse_absent_root
from dimefm.cli._output import document, result, settings
from dimefm.cli._recipe_options import evaluation_options
from dimefm.cli.eval._options import MACHINE_KEYS, model_option, out_option, root_option
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.runtime import console
from dimefm.storage.out_folder import refuse_foreign

HEADINGS = {
    "--model": "Models and output",
    "--root": "Datasets",
    "--resamples": "Comparison",
    "--device": "Machine",
}


@click.command(
    "agreement",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=HEADINGS,
    short_help="Compare a student with its teacher on the same images.",
)
@model_option("Student")
@click.option("--teacher", required=True, metavar="SPEC", help="Model to compare it with.")
@out_option("scores.json, report.md, forgotten.csv and the embeddings.")
@root_option("Folder with one folder per dataset.")
@evaluation_options("datasets", "layout")
@click.option(
    "--resamples",
    metavar="N",
    type=click.IntRange(min=100, max=1_000_000),
    default=1000,
    help="Resamples of the bootstrap.  [default: 1000]",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    help="Seed of the bootstrap.  [default: 0]",
)
@evaluation_options(*MACHINE_KEYS)
def command(model, teacher, out, root, resamples, seed, **flags):
    """Compare a student with its teacher, or any two models, on the same test images and prompts.

    Printed are the top-1 agreement, the cosine of the embeddings of each tower (linear CKA where
    the two do not share a space), the rank correlation and KL divergence of the class scores, the
    scores of both with the interval of their difference, the expected calibration errors, and the
    classes with the largest losses. The embeddings are saved in --out, so a second run is fast.

    \b
    Example:
      dimefm eval agreement --model runs/first --teacher ViT-L-14/openai \\
             --root datasets --out runs/first/agreement
    """
    refuse_unknown_models(model, teacher)
    refuse_absent_root(root)
    refuse_foreign(out, "scores", SCORE_MARKS)
    names = [name for value in flags["datasets"] for name in value.split(",") if name]
    chosen = {name: value for name, value in flags.items() if value not in (None, ())}
    request = Eval(**{**chosen, "datasets": tuple(names)})

    from dimefm.evaluate.agreement.job import FORGOTTEN, Choices, agreement
    from dimefm.evaluate.agreement.tables import terminal
    from dimefm.evaluate.preparing import refuse_unscored, settings_of
    from dimefm.models.loading import load_encoder

    student = load_encoder(model, request.device, request.precision)
    other = load_encoder(teacher, request.device, request.precision)
    for note in dict.fromkeys((*student.notes, *other.notes)):
        console.note(note)
    choices = Choices(root, names or None, request.layout, resamples, seed)
    how = settings_of(request.batch_size, request.workers, request.decoder)
    scores = agreement(student, other, choices, out, how)
    result(terminal(scores))
    result(f"\nwritten: {out / SCORES}, {out / REPORT}, {out / FORGOTTEN}")
    try:
        refuse_unscored(scores, root, names or None)
    except Exception:
        if settings(click.get_current_context()).json:
            click.echo(document(scores.to_json()))
        raise
    return scores.to_json()
