"""``dimefm cache quarantine``."""

from __future__ import annotations

from collections import Counter

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli.cache import caches


@click.command(
    "quarantine",
    context_settings=CONTEXT,
    short_help="List the rows that a cache left out, and why.",
)
@click.argument("root")
@click.option(
    "--summary", is_flag=True, help="Count the rows of each source instead of listing them."
)
def command(root, summary):
    """List the rows that the cache at ROOT left out: source, row, key, reason, separated by tabs.

    dimefm extract-features --retry-bad tries them again.

    Example: dimefm cache quarantine cache/images
    """
    from dimefm.cache import Manifest
    from dimefm.cache.quarantine import quarantined
    from dimefm.storage.stores import open_store

    for folder in caches(root):
        store = open_store(folder)
        manifest = Manifest.read(store)
        found = list(quarantined(store, manifest))
        click.echo(
            f"{folder}: {len(found):,} of {manifest.rows + len(found):,} rows quarantined", err=True
        )
        if summary:
            for source, count in Counter(source for source, _ in found).most_common():
                click.echo(f"{count}\t{source}")
            continue
        for source, bad in found:
            click.echo("\t".join((source, str(bad.row), bad.key, " ".join(bad.reason.split()))))
