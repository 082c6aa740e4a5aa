"""``dimefm cache diff``."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._recipe_options import scratch_option


@click.command("diff", context_settings=CONTEXT, short_help="Say how two caches differ.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--rows",
    default=4096,
    show_default=True,
    type=click.IntRange(1),
    help="Common rows to compare vectors of.",
)
@scratch_option
@click.pass_context
def command(context, a, b, rows, scratch):
    """Say how the caches A and B differ: fields, shards, quarantined rows, vectors. Exits with 1
    when fingerprints differ.

    Example: dimefm cache diff cache/images other/images
    """
    from dimefm.cache import FeatureCache
    from dimefm.cache.compare import compare

    found = compare(FeatureCache(a, scratch), FeatureCache(b, scratch), rows)
    click.echo(f"{a} against {b}: {found.describe()}")
    context.exit(0 if found.same else 1)
