"""``dimefm extract-features``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm import plugins
from dimefm.cli._options import ManyValues, column_options


@click.command("extract-features", cls=ManyValues)
@click.option("--teacher", required=True, metavar="SPEC", help="ARCH/TAG, ARCH/FILE, FILE, folder, or ARCH/random:SEED.")
@click.option("--images", multiple=True, metavar="SRC...", help="Images: files, folders, patterns or .list files.")
@click.option("--texts", multiple=True, metavar="SRC...", help="Sentences, paired with nothing.")
@click.option("--dataroot", type=click.Path(file_okay=False), help="Folder that relative sources are looked up in.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Gets images/ and texts/.")
@click.option(
    "--format",
    "format_",
    default="hdf5",
    show_default=True,
    type=click.Choice(plugins.names("caches")),
    help="Of the shards.",
)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="[float16; tsv: float32, as DIME-FM reads it]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the towers."
)
@click.option(
    "--batch-size", default=256, show_default=True, type=click.IntRange(1), metavar="N", help="Rows encoded at once."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Threads that read and decode.")
@click.option(
    "--captions",
    default="first",
    show_default=True,
    type=click.Choice(["first", "all"]),
    help="Of a row with several sentences.",
)
@click.option(
    "--long-texts",
    default="quarantine",
    show_default=True,
    type=click.Choice(["quarantine", "truncate"]),
    help="Past the context length.",
)
@click.option("--input-format", help="Format of the sources when it cannot be told from them.")
@column_options
@click.option("--text-model", metavar="SPEC", help="Text tower of a distilled run whose teacher has moved.")
def command(teacher, images, texts, dataroot, out, format_, dtype, device, precision, batch_size, workers, **flags):
    """Run a teacher once over images and sentences and cache its features.

    Images and sentences are separate sources; either may be left out. Interrupted, the same command goes on at the next
    unfinished shard.

    \b
    Example:
      dimefm extract-features --teacher ViT-L-14/openai --images photos/ --texts sentences.txt --out cache
    """
    from dimefm.data import Columns, open_rows
    from dimefm.extract import Settings, extract
    from dimefm.models.encoder import load_encoder

    if not images and not texts:
        raise click.UsageError("nothing to extract: give --images, --texts or both")
    columns = Columns(
        image=flags["image_column"],
        text=flags["text_column"],
        key=flags["key_column"],
        separator=flags["separator"],
        root=Path(dataroot) if dataroot else None,
    )
    settings = Settings(format_, dtype, batch_size, workers, flags["captions"], flags["long_texts"])
    sources = [
        (kind, open_rows(found, kind, dataroot=dataroot, input_format=flags["input_format"], columns=columns))
        for kind, found in (("image", images), ("text", texts))
        if found
    ]
    encoder = load_encoder(teacher, device, precision, flags["text_model"])
    click.echo(f"teacher {encoder.card.name} (weights {encoder.card.weights_sha256[:12]}) on {encoder.device}", err=True)
    for kind, rows in sources:
        click.echo(extract(encoder, rows, kind, out / f"{kind}s", settings).describe())
    if format_ == "tsv" and dtype == "float16":
        click.echo("note: DIME-FM's own loader reads float32 only; these float16 TSVs are for dimefm", err=True)
