"""``dimefm cache neighbours``."""

from __future__ import annotations

import textwrap

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result
from dimefm.cli._recipe_options import scratch_option
from dimefm.cli.cache import lasting
from dimefm.runtime.printable import shown

PAIRS = 5  # of nearest neighbours that --report prints


@click.command(
    "neighbours", context_settings=CONTEXT, short_help="Find the nearest other rows of each row."
)
@click.argument("root")
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    callback=lasting,
    help="Folder or URL for the neighbours.",
)
@click.option(
    "--k",
    default=16,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Neighbours of each row.",
)
@click.option(
    "--max-cosine",
    default=0.9999,
    show_default=True,
    type=click.FloatRange(-1, 1),
    help="Exclude rows with a higher cosine: duplicates. 1 keeps them.",
)
@click.option(
    "--min-cosine",
    default=-1.0,
    show_default=True,
    type=click.FloatRange(-1, 1),
    help="Exclude rows with a lower cosine.",
)
@click.option(
    "--index",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "exact", "ivf"]),
    help="Compare with all rows, or with near lists. auto: exact up to 250,000 rows.",
)
@click.option(
    "--probes",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Number of lists that ivf searches.",
)
@click.option(
    "--report",
    is_flag=True,
    help="Also print how many rows have a near-duplicate, and the nearest neighbours by key.",
)
@scratch_option
def command(root, out, report, scratch, **rule):
    """Find the nearest other rows of each row of the cache at ROOT.

    Their numbers and cosines are written to DIR, as ids.npy and cosines.npy, and the keys of all
    rows as keys.jsonl: number i stands for the key on line i, counted from 0. Rows with one key
    (its views, or its texts KEY#0, KEY#1, ...) are never neighbours of each other. A row with fewer
    than k neighbours has -1 in the other places. An ivf index measures its recall at 1 on rows that
    it was not trained on, and records it. OMP_NUM_THREADS sets the number of search threads. The
    index needs 4 bytes x rows x dimensions of memory.

    \b
    Example:
      dimefm cache neighbours cache/texts --out neighbours/texts --report
      dimefm cache neighbours cache/texts --out neighbours/loose \\
        --min-cosine 0.7 --max-cosine 0.95
    """
    from dimefm.cache import FeatureCache
    from dimefm.curate.neighbours import Rule, build

    try:
        checked_rule = Rule(**rule)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    made = build(FeatureCache(root, scratch), out, checked_rule, scratch, quiet=False)
    result(out)
    result(textwrap.indent(made.describe(), "  "))
    if report:
        result(textwrap.indent(made.report(), "  "))
        result("  nearest neighbours")
        for key, neighbour_key, cosine in made.nearest_pairs(PAIRS):
            result(f"    {cosine:.4f}  '{shown(key)}'  '{shown(neighbour_key)}'")
    return {"out": out, **made.record}
