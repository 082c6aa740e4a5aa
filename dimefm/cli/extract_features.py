"""``dimefm extract-features``."""

from __future__ import annotations

import functools

import click

from dimefm import plugins
from dimefm.cli._options import ManyValues, open_sources
from dimefm.cli._recipe_options import selection_options, source_options
from dimefm.cli.assignments import assignments


class BatchSize(click.IntRange):
    """A number from 1, or ``auto``, which is None."""

    def __init__(self):
        super().__init__(min=1)

    def convert(self, value, param, ctx):
        return None if value == "auto" else super().convert(value, param, ctx)


SECTIONS = {
    "--teacher": "What is encoded, and where it goes",
    "--dataroot": "How sources are read",
    "--rows": "Which of their rows",
    "--format": "What the cache holds",
    "--device": "The machine",
    "--shard-range": "Many machines, and caches that grow",
}


@click.command(
    "extract-features",
    cls=ManyValues,
    sections=SECTIONS,
    short_help="Run a teacher once; write its features to shards.",
)
@click.option(
    "--teacher",
    "teachers",
    required=True,
    multiple=True,
    metavar="SPEC...",
    help=(
        "ARCH/TAG of open_clip, ARCH/FILE, FILE, folder (a run, too), or ARCH/random:SEED. Several"
        " are all in memory at once."
    ),
)
@click.option(
    "--images",
    multiple=True,
    metavar="SRC...",
    help="Images: files, folders, patterns, .list files, or URLs.",
)
@click.option("--texts", multiple=True, metavar="SRC...", help="Sentences, paired with nothing.")
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Folder or URL; gets images/ and texts/, with several teachers in a folder of each.",
)
@click.option(
    "--text-model",
    metavar="SPEC",
    help=(
        "When --teacher is a distilled run: where its own teacher lies now, or a text tower's run."
    ),
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Print bytes, rows and time from a small probe, and write nothing.",
)
@source_options
@selection_options
@click.option(
    "--format",
    "format_",
    default="hdf5",
    show_default=True,
    type=click.Choice(plugins.names("caches")),
    help="Of the shards.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32", "int8"]),
    help="Of the numbers.  [float16; tsv: float32, for DIME-FM]",
)
@click.option(
    "--views",
    type=click.IntRange(1),
    metavar="K",
    help="Cache K random crops of each image.  [the centre view]",
)
@click.option(
    "--view-recipe",
    multiple=True,
    metavar="KEY=VALUE...",
    help="Of views: scale, ratio, flip, seed, as TOML.",
)
@click.option(
    "--captions",
    default="first",
    show_default=True,
    type=click.Choice(["first", "all"]),
    help="Which sentences of a row that has several.",
)
@click.option(
    "--text-views",
    type=click.IntRange(1),
    metavar="K",
    help=(
        "Cache K views of each row's sentences: its captions in turn, or variants.  [the first"
        " caption]"
    ),
)
@click.option(
    "--text-recipe",
    multiple=True,
    metavar="KEY=VALUE...",
    help=(
        "Of text views: augment ('none', 'eda': DeCLIP's), seed, deletion, clean, synonyms (a"
        " file), as TOML."
    ),
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    metavar="N",
    help=(
        "Cache, in place of its vector, the N patches or words of an image or sentence that are"
        " most like it (for FILIP)."
    ),
)
@click.option(
    "--long-texts",
    default="quarantine",
    show_default=True,
    type=click.Choice(["quarantine", "truncate"]),
    help="What becomes of sentences past the context length.",
)
@click.option(
    "--decoder",
    default="turbo",
    show_default=True,
    type=click.Choice(["turbo", "pil"]),
    help="Of images: libjpeg-turbo, upright; or open_clip's own transform to the bit.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "fp32-fast", "bf16", "fp16", "auto"]),
    help=(
        "Of the towers. fp32-fast: in products of matrices bf16 (CPU) or TF32 (GPU). auto:"
        " fp32-fast on a CPU, bf16 on a GPU, where this machine is quicker in it, else fp32; of a"
        " cache that is there, its own."
    ),
)
@click.option("--compile", is_flag=True, help="Run the image tower compiled; needs a C++ compiler.")
@click.option(
    "--batch-size",
    default="256",
    show_default=True,
    type=BatchSize(),
    metavar="N|auto",
    help="Rows encoded at once; fewer when memory runs out. auto: of images, measured here.",
)
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Beside a GPU, threads that read and decode.",
)
@click.option(
    "--shard-range",
    metavar="I/N",
    help="Do part I (from 0) of N parts of the shards, e.g. of a SLURM array.",
)
@click.option(
    "--shuffle-shards",
    type=int,
    metavar="SEED",
    help="Take the shards in random order; the cache is the same.",
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(plugins.names("engines")),
    help="This process (also under torchrun), or a Ray cluster.",
)
@click.option(
    "--append", is_flag=True, help="Add the source shards that the cache does not have yet."
)
@click.option(
    "--retry-bad", is_flag=True, help="Try the quarantined rows of a finished cache again."
)
def command(
    teachers,
    images,
    texts,
    out,
    format_,
    dtype,
    device,
    precision,
    engine,
    append,
    retry_bad,
    estimate,
    **flags,
):
    """Run a teacher once over images and sentences and cache its features.

    Images and sentences are separate sources; either may be left out. Interrupted, the same command
    goes on at the next unfinished shard. Sources and --out may be URLs (s3://, gs://, ...). Several
    processes with one --out share its shards.

    Several teachers go over the sources in one pass, in which each image is read and decoded once;
    all of them are in memory at the same time. The cache of each is the one that it makes alone.

    \b
    Example:
      dimefm extract-features --teacher ViT-L-14/openai --images photos/ --texts sentences.txt --out
      cache dimefm extract-features --teacher ViT-L-14/openai RN50/openai --images photos/ --out
      cache dimefm extract-features --teacher ViT-L-14/openai --texts captions.csv --text-views 4
      --out cache torchrun --nproc-per-node 8 -m dimefm extract-features --teacher ViT-L-14/openai
      --images photos/ --out cache
    """
    from dimefm.data.views.image_views import SETTINGS, ViewPolicy
    from dimefm.data.views.patch_tokens import TokenPolicy
    from dimefm.data.views.text_views import KINDS, TextPolicy
    from dimefm.extract.extract import Mode, Settings
    from dimefm.extract.job import Extraction, folders_of
    from dimefm.extract.sharding import share_of
    from dimefm.extract.stages.tokens import check_settings
    from dimefm.models.encoder import load_encoder
    from dimefm.models.inference.precision import advice
    from dimefm.runtime.devices import pick_device

    if not images and not texts:
        raise click.UsageError("nothing to extract: give --images, --texts or both")
    if append and retry_bad:
        raise click.UsageError("--append and --retry-bad are two steps; run one after the other")
    if len(teachers) > 1 and flags["text_model"]:
        raise click.UsageError(
            "--text-model is the text tower of one teacher; extract that teacher alone"
        )
    if flags["text_views"] and flags["captions"] == "all":
        raise click.UsageError(
            "--captions all makes a row of every sentence, --text-views K of every row; leave"
            " one out"
        )
    crops = assignments("--view-recipe", flags["view_recipe"], "scale=[0.5,1.0]", SETTINGS)
    views = ViewPolicy.parse(flags["views"], crops)
    variants = assignments("--text-recipe", flags["text_recipe"], "augment='eda'", KINDS)
    text_views = TextPolicy.parse(flags["text_views"], variants)
    if flags["tokens"] is not None:
        check_settings(views, text_views, flags["compile"])
    share = share_of(flags["shard_range"], flags["shuffle_shards"])
    names = ("workers", "decoder", "captions", "long_texts", "compile")
    settings = Settings(
        format_,
        dtype,
        flags["batch_size"] or Settings.batch_size,
        auto_batch=flags["batch_size"] is None,
        auto_precision=precision == "auto",
        views=views,
        text_views=text_views,
        tokens=None if flags["tokens"] is None else TokenPolicy(flags["tokens"]),
        progress=share.rank == 0,
        **{name: flags[name] for name in names},
    )
    precision = "fp32" if settings.auto_precision else precision
    if engine == "local" and share.rank == 0 and (note := advice(precision, pick_device(device))):
        click.echo(note, err=True)
    mode: Mode = "append" if append else "retry" if retry_bad else "create"
    given = [(kind, found) for kind, found in (("image", images), ("text", texts)) if found]
    extraction = Extraction(
        tuple(
            (
                folder,
                functools.partial(load_encoder, teacher, device, precision, flags["text_model"]),
            )
            for folder, teacher in zip(folders_of(teachers), teachers, strict=True)
        ),
        tuple((kind, functools.partial(open_sources, found, kind, flags)) for kind, found in given),
        out,
        settings,
        mode,
        flags["scratch"],
    )
    if estimate:
        _print_estimates(extraction)
        return
    plugins.module("engines", engine).run(extraction, share, click.echo)
    if format_ == "tsv" and dtype in ("float16", "int8"):
        click.echo(
            f"note: DIME-FM's own loader reads float32 only; these {dtype} TSVs are for dimefm",
            err=True,
        )


def _print_estimates(extraction) -> None:
    """Print what each cache would take; of several teachers, as if each ran alone."""
    from dimefm.extract.estimate import estimate

    sources, encoders = extraction.open(), extraction.load()
    for kind, rows in sources:
        for encoder, place in zip(encoders, extraction.places(kind), strict=True):
            if len(encoders) > 1:
                click.echo(f"{place}, alone:")
            click.echo(estimate(encoder, rows, kind, place, extraction.settings).describe())
