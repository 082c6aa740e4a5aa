"""``dimefm extract-features``."""

from __future__ import annotations

import click

from dimefm import plugins
from dimefm.cli._options import ManyValues, open_sources, source_options


@click.command("extract-features", cls=ManyValues)
@click.option("--teacher", required=True, metavar="SPEC", help="ARCH/TAG, ARCH/FILE, FILE, folder, or ARCH/random:SEED.")
@click.option("--images", multiple=True, metavar="SRC...", help="Images: files, folders, patterns, .list files, or URLs.")
@click.option("--texts", multiple=True, metavar="SRC...", help="Sentences, paired with nothing.")
@click.option("--out", required=True, metavar="DIR", help="Folder or URL; gets images/ and texts/.")
@click.option(
    "--format",
    "format_",
    default="hdf5",
    show_default=True,
    type=click.Choice(plugins.names("caches")),
    help="Of the shards.",
)
@click.option("--dtype", type=click.Choice(["float16", "float32", "int8"]), help="[float16; tsv: float32, for DIME-FM]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the towers."
)
@click.option(
    "--batch-size", default=256, show_default=True, type=click.IntRange(1), metavar="N", help="Rows encoded at once."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Threads that read and decode.")
@click.option(
    "--decoder",
    default="turbo",
    show_default=True,
    type=click.Choice(["turbo", "pil"]),
    help="Of images: libjpeg-turbo, upright; or open_clip's own transform to the bit.",
)
@click.option(
    "--captions",
    default="first",
    show_default=True,
    type=click.Choice(["first", "all"]),
    help="Of a row with several sentences.",
)
@click.option("--views", type=click.IntRange(1), metavar="K", help="Cache K random crops of each image.  [the centre view]")
@click.option("--view-recipe", multiple=True, metavar="KEY=VALUE...", help="Of views: scale, ratio, flip, seed, as TOML.")
@click.option(
    "--long-texts",
    default="quarantine",
    show_default=True,
    type=click.Choice(["quarantine", "truncate"]),
    help="Past the context length.",
)
@source_options
@click.option("--append", is_flag=True, help="Add the source shards that the cache does not have yet.")
@click.option("--retry-bad", is_flag=True, help="Try the quarantined rows of a finished cache again.")
@click.option("--estimate", is_flag=True, help="Print bytes, rows and time from a small probe, and write nothing.")
@click.option("--text-model", metavar="SPEC", help="Text tower of a distilled run whose teacher has moved.")
def command(teacher, images, texts, out, format_, dtype, device, precision, append, retry_bad, estimate, **flags):
    """Run a teacher once over images and sentences and cache its features.

    Images and sentences are separate sources; either may be left out. Interrupted, the same command goes on at the next
    unfinished shard. Sources and --out may be URLs (s3://, gs://, ...).

    \b
    Example:
      dimefm extract-features --teacher ViT-L-14/openai --images photos/ --texts sentences.txt --out cache
    """
    from dimefm.data.views import ViewPolicy
    from dimefm.estimate import estimate as estimated
    from dimefm.extract import Mode, Settings, extract
    from dimefm.models.encoder import load_encoder

    if not images and not texts:
        raise click.UsageError("nothing to extract: give --images, --texts or both")
    if append and retry_bad:
        raise click.UsageError("--append and --retry-bad are two steps; run one after the other")
    views = ViewPolicy.parse(flags["views"], flags["view_recipe"])
    names = ("batch_size", "workers", "decoder", "captions", "long_texts")
    settings = Settings(format_, dtype, views=views, **{name: flags[name] for name in names})
    given = [(kind, found) for kind, found in (("image", images), ("text", texts)) if found]
    sources = [(kind, open_sources(found, kind, flags)) for kind, found in given]
    encoder = load_encoder(teacher, device, precision, flags["text_model"])
    click.echo(f"teacher {encoder.card.name} (weights {encoder.card.weights_sha256[:12]}) on {encoder.device}", err=True)
    mode: Mode = "append" if append else "retry" if retry_bad else "create"
    for kind, rows in sources:
        place = f"{out.rstrip('/') or '/'}/{kind}s"
        if estimate:
            click.echo(estimated(encoder, rows, kind, place, settings).describe())
        else:
            click.echo(extract(encoder, rows, kind, place, settings, mode=mode, scratch=flags["scratch"]).describe())
    if format_ == "tsv" and dtype in ("float16", "int8"):
        click.echo(f"note: DIME-FM's own loader reads float32 only; these {dtype} TSVs are for dimefm", err=True)
