"""``dimefm extract-features``. The options that describe an extraction come from its schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dimefm import plugins
from dimefm.cli._options import CONTEXT, ManyValues, refuse_absent_inputs
from dimefm.cli._output import result
from dimefm.cli._recipe_options import section_options
from dimefm.cli.assignments import assignments
from dimefm.cli.cache import lasting
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.recipe.schema.extraction import Extract
from dimefm.runtime import console


class BatchSize(click.IntRange):
    """A number from 1, or ``auto``."""

    def __init__(self):
        super().__init__(min=1)

    def convert(self, value, param, ctx):
        return value if value == "auto" else super().convert(value, param, ctx)


SECTIONS = {
    "--out": "Output",
    "--teacher": "Teacher and sources",
    "--dataroot": "Reading of sources",
    "--rows": "Selection of samples",
    "--format": "Contents of the cache",
    "--device": "Machine",
    "--view-recipe": "Settings of views",
    "--engine": "Many machines, and caches that grow",
}


@click.command(
    "extract-features",
    cls=ManyValues,
    context_settings=CONTEXT,
    sections=SECTIONS,
    short_help="Run a teacher once; write its embeddings to shards.",
)
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    callback=lasting,
    help=(
        "Folder or URL to write: gets images/ and texts/, with several teachers in a folder of"
        " each."
    ),
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Print bytes, rows and time from a small probe; write nothing.",
)
@section_options(
    Extract,
    required=("teacher",),
    types={"format": click.Choice(plugins.names("caches")), "batch_size": BatchSize()},
)
@click.option(
    "--view-recipe",
    multiple=True,
    metavar="KEY=VALUE...",
    help="Settings of --views, as TOML: scale, ratio, flip, seed.",
)
@click.option(
    "--text-recipe",
    multiple=True,
    metavar="KEY=VALUE...",
    help=(
        "Settings of --text-views, as TOML: augment ('none', or 'eda' as DeCLIP's), seed,"
        " deletion, clean, synonyms (a file)."
    ),
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(plugins.names("engines")),
    help="Engine: this process (also under torchrun), or a Ray cluster.",
)
@click.option(
    "--shard-range",
    metavar="I/N",
    help="Part of the shards to do: part I (from 0) of N, e.g. of a SLURM array.",
)
@click.option(
    "--shuffle-shards",
    type=int,
    metavar="SEED",
    help="Seed of a random order of the shards; the cache is the same.",
)
@click.option("--append", is_flag=True, help="Add the source shards that the cache lacks.")
@click.option(
    "--retry-bad", is_flag=True, help="Try the quarantined samples of a finished cache again."
)
def command(
    out,
    estimate,
    engine,
    shard_range,
    shuffle_shards,
    append,
    retry_bad,
    view_recipe,
    text_recipe,
    **flags,
):
    """Run a teacher once over images and texts, and cache its embeddings.

    Images and texts are separate sources; either may be missing. An interrupted command resumes at
    the next unfinished shard. Sources and --out may be URLs (s3://, gs://, ...). Several processes
    with one --out share its shards.

    Several teachers share one pass over the sources: each image is read and decoded once, and
    all of them are in memory at the same time. The cache of each teacher is the one that it makes
    alone.

    \b
    Example:
      dimefm extract-features --teacher ViT-L-14/openai \\
             --images photos/ --texts sentences.txt --out cache
      dimefm extract-features --teacher ViT-L-14/openai RN50/openai \\
             --images photos/ --out cache
      dimefm extract-features --teacher ViT-L-14/openai \\
             --texts captions.csv --text-views 4 --out cache
      torchrun --nproc-per-node 8 -m dimefm extract-features \\
             --teacher ViT-L-14/openai --images photos/ --out cache
    """
    _refuse_usage(flags, append, retry_bad)
    if len(flags["teacher"]) == 1 and not flags["tokens"]:  # else other faults are told first
        refuse_unknown_models(*flags["teacher"], flags["text_model"])
    refuse_absent_inputs((*flags["images"], *flags["texts"]), flags["dataroot"])

    from dimefm.data.views.image_views import SETTINGS
    from dimefm.data.views.text_views import KINDS
    from dimefm.extract.extract import Mode
    from dimefm.extract.request import plan_extraction
    from dimefm.extract.sharding import share_of
    from dimefm.models.inference.precision import advice
    from dimefm.runtime.devices import pick_device

    settings = {name: value for name, value in flags.items() if value not in (None, (), False)}
    settings["view_recipe"] = assignments("--view-recipe", view_recipe, "flip=0.0", SETTINGS)
    settings["text_recipe"] = assignments("--text-recipe", text_recipe, "augment='eda'", KINDS)
    request = Extract(**settings)
    share = share_of(shard_range, shuffle_shards)
    mode: Mode = "append" if append else "retry" if retry_bad else "create"
    extraction = plan_extraction(request, out, mode, progress=share.rank == 0)

    precision = "fp32" if request.precision == "auto" else request.precision
    note = advice(precision, pick_device(request.device))
    if note and engine == "local" and share.rank == 0:
        console.note(note)
    if estimate:
        return _print_estimates(extraction)
    reports = plugins.module("engines", engine).run(extraction, share, result)
    if request.format == "tsv" and request.dtype in ("float16", "int8"):
        console.note(
            f"note: DIME-FM's own loader reads float32 only; these {request.dtype} TSVs are for"
            " dimefm"
        )
    return [report.as_dict() for report in reports]


def _refuse_usage(flags: Mapping[str, Any], append: bool, retry_bad: bool) -> None:
    """Raise UsageError for options that contradict each other."""
    if not flags["images"] and not flags["texts"]:
        raise click.UsageError("nothing to extract: give --images, --texts or both")
    if append and retry_bad:
        raise click.UsageError(
            "--append and --retry-bad are two steps. Fix: run one after the other"
        )
    if len(flags["teacher"]) > 1 and flags["text_model"]:
        raise click.UsageError(
            "--text-model is the text tower of one teacher. Fix: extract that teacher alone"
        )
    if flags["text_views"] and flags["captions"] == "all":
        raise click.UsageError(
            "--captions all makes a row of every sentence, --text-views K of every row. Fix: leave"
            " one out"
        )


def _print_estimates(extraction) -> list:
    """Print and return what each cache would take; of several teachers, as if each ran alone."""
    from dimefm.extract.estimate import estimate

    sources = extraction.open()
    encoders = extraction.load()
    estimates = []
    for kind, rows in sources:
        for encoder, place in zip(encoders, extraction.places(kind), strict=True):
            if len(encoders) > 1:
                result(f"{place}, alone:")
            estimated = estimate(encoder, rows, kind, place, extraction.settings)
            result(estimated.describe())
            estimates.append({"cache": place, "kind": kind, "estimate": estimated})
    return estimates
