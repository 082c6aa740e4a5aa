"""``dimefm eval duplicates``: test images among the images of the training cache."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT, ManyValues, refuse_absent_root
from dimefm.cli._output import document, result, settings
from dimefm.cli._recipe_options import evaluation_options, scratch_option
from dimefm.cli.eval._options import MACHINE_KEYS, out_option, root_option
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.runtime import console
from dimefm.storage.out_folder import refuse_foreign

HEADINGS = {
    "--teacher": "Models and output",
    "--cache": "Training images",
    "--root": "Datasets",
    "--device": "Machine",
}


@click.command(
    "duplicates",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=HEADINGS,
    short_help="Find test images among the training images.",
)
@click.option(
    "--teacher",
    required=True,
    metavar="SPEC",
    help="Encoder of the cache: a run folder, ARCH/TAG of open_clip, or another --teacher SPEC.",
)
@click.option(
    "--model",
    metavar="SPEC",
    help="Model to score with and without the duplicates.  [default: the teacher]",
)
@out_option("scores.json, report.md, duplicates.csv and the embeddings.")
@click.option(
    "--cache",
    "caches",
    required=True,
    multiple=True,
    metavar="CACHE",
    help="Image cache of the training images, any number of times: a folder or URL.",
)
@click.option(
    "--threshold",
    metavar="COSINE",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.95,
    help="Least cosine of two near-duplicates.  [default: 0.95]",
)
@scratch_option
@root_option("Folder with one folder per dataset.")
@evaluation_options("datasets", "layout")
@evaluation_options(*MACHINE_KEYS)
def command(teacher, model, out, caches, threshold, scratch, root, **flags):
    """Find near-duplicates of test images among the training images, and score a model without
    them.

    The test images are embedded by the encoder of the cache and compared with all its rows. The
    pairs are written to duplicates.csv. A cache of another encoder is refused.

    \b
    Example:
      dimefm eval duplicates --teacher ViT-L-14/openai --cache cache/images \\
             --model runs/first --root datasets --out runs/first/duplicates
    """
    refuse_unknown_models(teacher, model)
    refuse_absent_root(root)
    refuse_foreign(out, "scores", SCORE_MARKS)
    names = [name for value in flags["datasets"] for name in value.split(",") if name]
    chosen = {name: value for name, value in flags.items() if value not in (None, ())}
    request = Eval(**{**chosen, "datasets": tuple(names)})

    from dimefm.cache import FeatureCache
    from dimefm.evaluate.agreement.duplicate_tables import terminal
    from dimefm.evaluate.agreement.duplicates import DUPLICATES, Choices, near_duplicates
    from dimefm.evaluate.preparing import refuse_unscored, settings_of
    from dimefm.models.loading import load_encoder

    opened = [FeatureCache(cache, scratch) for cache in caches]
    encoder = load_encoder(teacher, request.device, request.precision)
    scored = encoder
    if model is not None and model != teacher:
        scored = load_encoder(model, request.device, request.precision)
    for note in dict.fromkeys((*encoder.notes, *scored.notes)):
        console.note(note)
    choices = Choices(root, names or None, request.layout, threshold)
    how = settings_of(request.batch_size, request.workers, request.decoder)
    scores = near_duplicates(encoder, scored, opened, choices, out, how)
    result(terminal(scores))
    result(f"\nwritten: {out / SCORES}, {out / REPORT}, {out / DUPLICATES}")
    try:
        refuse_unscored(scores, root, names or None)
    except Exception:
        if settings(click.get_current_context()).json:
            click.echo(document(scores.to_json()))
        raise
    return scores.to_json()
