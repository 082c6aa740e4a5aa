"""``dimefm cache diff``."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import exit_with, result
from dimefm.cli._recipe_options import scratch_option


@click.command("diff", context_settings=CONTEXT, short_help="Show how two caches differ.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--rows",
    default=4096,
    show_default=True,
    type=click.IntRange(1),
    help="Number of common rows whose vectors are compared.",
)
@scratch_option
def command(a, b, rows, scratch):
    """Show how the caches A and B differ: fields, shards, quarantined rows, vectors.

    Exits with 1 when the fingerprints differ.

    Example: dimefm cache diff cache/images other/images
    """
    from dimefm.cache import FeatureCache
    from dimefm.cache.compare import compare

    comparison = compare(FeatureCache(a, scratch), FeatureCache(b, scratch), rows)
    result(f"{a} against {b}: {comparison.describe()}")
    if not comparison.same:
        exit_with(1)
    return comparison
