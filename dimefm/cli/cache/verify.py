"""``dimefm cache verify``."""

from __future__ import annotations

import click

from dimefm.cli.cache import caches


@click.command("verify")
@click.argument("root", type=click.Path(exists=True, file_okay=False))
@click.option("--sha256", is_flag=True, help="Hash and read every shard instead of comparing sizes.")
def command(root, sha256):
    """Check that the cache at ROOT is whole.

    Example: dimefm cache verify cache/images --sha256
    """
    from dimefm.cache import FeatureCache

    for folder in caches(root):
        cache = FeatureCache(folder)
        checked = cache.verify(sha256)
        click.echo(
            f"{folder}: {checked} shards, {len(cache):,} rows, {'SHA-256 and rows' if sha256 else 'sizes'} as recorded"
        )
