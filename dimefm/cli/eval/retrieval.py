"""``dimefm eval retrieval``: recall of a model on images with captions, or of two caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dimefm.cli._options import CONTEXT, ManyValues
from dimefm.cli._output import result
from dimefm.cli._recipe_options import evaluation_options, scratch_option
from dimefm.errors import RecipeError
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.storage.out_folder import refuse_foreign

HEADINGS = {
    "--model": "A model on images with captions",
    "--images": "Two caches",
    "--split": "Samples and output",
    "--text-model": "Model and machine",
}
OF_MODEL = ("text_model", "preprocess", "decoder", "device", "precision", "batch_size", "workers")
"""Keys of an evaluation that a model needs, and two caches do not."""


@click.command(
    "retrieval",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=HEADINGS,
    short_help="Score a model, or two caches, by retrieval.",
)
@click.option(
    "--model",
    metavar="SPEC",
    help="Model to score: a run folder, ARCH/TAG of open_clip, or any other --teacher SPEC.",
)
@click.option(
    "--data",
    metavar="SOURCE",
    help="Images with captions: a JSON of Karpathy or COCO, a webdataset folder, Parquet, a table.",
)
@click.option(
    "--root",
    metavar="DIR",
    help="Folder of the images that --data names.  [default: that of --data]",
)
@click.option(
    "--captions",
    type=click.Choice(("all", "first")),
    default="all",
    help="Captions of an image: all, or the first as CLIP-KD.  [default: all]",
)
@click.option(
    "--layout",
    type=click.Choice(("karpathy", "coco", "webdataset", "parquet", "table")),
    help="Layout of --data.  [default: detected]",
)
@click.option("--images", metavar="CACHE", help="Image cache: a folder or URL.")
@click.option("--texts", metavar="CACHE", help="Text cache of the same model: a folder or URL.")
@scratch_option
@click.option(
    "--split",
    metavar="NAME|A:B",
    help=(
        "Split of --data: test, val or train.  [default: test]  Of caches, a share by a hash of"
        " their keys, as in train.  [default: all]"
    ),
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=(
        "Folder to write: scores.json and report.md; of a model also retrieved.jsonl and the"
        " embeddings.  [default: print only; a model needs it]"
    ),
)
@evaluation_options(*OF_MODEL)
@click.pass_context
def command(context, model, data, images, texts, split, out, **flags):
    """Search images by text and texts by image: recall at 1, 5 and 10.

    With --model and --data, images and captions are encoded; any caption of an image is right. The
    embeddings are saved in --out, so a second run is fast.

    With --images and --texts, two caches are compared. A text matches the image of the same key. An
    image may have several texts, with the keys KEY#0, KEY#1, ...: any of them is a match.

    \b
    Example:
      dimefm eval retrieval --model ViT-B-32/openai --data dataset_coco.json \\
             --root coco/images --out scores/coco
      dimefm eval retrieval --images cache/images --texts cache/texts \\
             --out scores/retrieval
    """
    scratch = flags.pop("scratch")
    _check_forms(model, data, images, texts, [name for name in flags if _is_given(context, name)])
    if out:
        refuse_foreign(out, "scores", SCORE_MARKS)
    if model is None:
        return _of_caches(images, texts, split, out, scratch)
    if out is None:
        raise RecipeError("--model needs a folder for the embeddings. Fix: name one with --out")
    return _of_model(model, data, split or "test", out, flags)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _check_forms(model, data, images, texts, given: list[str]) -> None:
    """Raise RecipeError unless the flags are those of one of the two forms."""
    is_model = model is not None or data is not None
    is_caches = images is not None or texts is not None
    if is_model == is_caches:
        got = "a model and caches" if is_model else "nothing to score"
        raise RecipeError(
            f"{got}: expected --model with --data, or --images with --texts. Fix: name one of the"
            " two pairs"
        )
    missing = [
        name
        for name, value, is_needed in (
            ("--model", model, is_model),
            ("--data", data, is_model),
            ("--images", images, is_caches),
            ("--texts", texts, is_caches),
        )
        if is_needed and value is None
    ]
    if missing:
        raise RecipeError(
            f"{missing[0]} is missing: --model needs --data, and --images need --texts. Fix: name"
            " both"
        )
    if is_caches and given:
        flag = "--" + given[0].replace("_", "-")
        raise RecipeError(f"{flag} is for a model, two caches are encoded already. Fix: remove it")


def _of_caches(images: str, texts: str, split: str | None, out: Path | None, scratch):
    """Score two caches; return what scores.json holds."""
    from dimefm.cache import FeatureCache
    from dimefm.data.selection import parse_split
    from dimefm.evaluate.retrieval import markdown, retrieval_scores, terminal
    from dimefm.evaluate.retrieval import retrieval as run
    from dimefm.runs.scores import write_scores

    chosen = None if split is None else parse_split(split)
    image_cache = FeatureCache(images, scratch)
    text_cache = FeatureCache(texts, scratch)
    scores = retrieval_scores(image_cache, run(image_cache, text_cache, split=chosen))
    result(terminal(scores))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_scores(out, scores, markdown(scores))
        result(f"\nwritten: {out / SCORES}, {out / REPORT}")
    return scores.to_json()


def _of_model(model: str, data: str, split: str, out: Path, flags: dict[str, Any]):
    """Encode images and captions with a model, score them, and return what scores.json holds."""
    request = Eval(**{name: flags[name] for name in OF_MODEL})
    refuse_unknown_models(model, request.text_model)

    from dimefm.evaluate import retrieval_model
    from dimefm.evaluate.datasets.captions import open_pairs
    from dimefm.extract.extract import Settings
    from dimefm.models.loading import load_encoder
    from dimefm.runtime import console

    pairs = open_pairs(data, split, flags["root"], flags["layout"])
    encoder = load_encoder(
        model, request.device, request.precision, request.text_model, request.preprocess
    )
    for note in encoder.notes:
        console.note(note)
    settings = Settings(
        dtype="float32",
        batch_size=request.batch_size,
        workers=request.workers,
        decoder=request.decoder,
    )
    stated = {"data": data, "split": split, "root": flags["root"]}
    scores = retrieval_model.score(encoder, pairs, out, settings, flags["captions"], stated)
    result(retrieval_model.terminal(scores))
    result(f"\nwritten: {out / SCORES}, {out / REPORT}, {out / retrieval_model.RETRIEVED}")
    return scores.to_json()
