"""``dimefm pack``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import ManyValues, open_sources, refuse_absent_inputs
from dimefm.cli._output import result
from dimefm.cli._recipe_options import selection_options, source_options
from dimefm.errors import DataError
from dimefm.runtime import console
from dimefm.runtime.text import without_remedy


@click.command("pack", cls=ManyValues, short_help="Downscale images once to speed up training.")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write.",
)
@click.option(
    "--size",
    default=256,
    show_default=True,
    type=click.IntRange(8),
    metavar="PIXELS",
    help="Largest shorter side of a packed image.",
)
@click.option(
    "--quality",
    default=90,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="N",
    help="JPEG quality.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads that read, resize and write.  [default: one per core]",
)
@source_options
@selection_options
def command(sources, out, size, quality, workers, **flags):
    """Downscale images once, so that training reads and decodes fewer bytes.

    Each shard of SRC becomes a tar of upright RGB JPEGs with the same keys, texts and labels. Small
    images are never enlarged. An interrupted command resumes at the next unfinished shard.

    A cache extracted from SRC also serves the packed images: pass the packed folder to train in
    place of SRC. If the extraction selected some of the samples, pass the same selection to
    pack or to train.

    A sample whose image cannot be read keeps its number, is never shown, and is listed in pack.json
    with the reason.

    \b
    Example:
      dimefm pack photos/ --out packed
    """
    refuse_absent_inputs(sources, flags["dataroot"])

    from dimefm.data.packed.pack import Settings, pack

    report = pack(rows_of(sources, flags), out, Settings(size, quality, workers))
    for bad in report.bad[:5]:
        console.note(f"bad row: {bad['source']} row {bad['row']}: {bad['reason']}")
    if len(report.bad) > 5:
        console.note(f"and {len(report.bad) - 5:,} more; all are listed in {out / 'pack.json'}")
    result(f"{out}: {report.describe()}")
    return report


def rows_of(sources, flags):
    """Return the rows of the sources, with their sentences if they have any; DIME-FM's TSVs of
    images have none.

    Raises DataError where TSVs stand in addition to other sources, whose sentences would be lost.
    """
    from dimefm.data.formats.tsv import TsvShard

    try:
        return open_sources(sources, "pair", flags)
    except DataError as error:
        rows = open_sources(sources, "image", flags)
        if all(isinstance(getattr(shard, "whole", shard), TsvShard) for shard in rows.shards):
            return rows
        raise DataError(
            f"{without_remedy(error)}. Fix: pack them apart from the other sources"
        ) from error
