"""``dimefm cache``."""

from __future__ import annotations

import click


@click.group("cache")
def command():
    """Look into feature caches and check them."""


@command.command("info")
@click.argument("root", type=click.Path(exists=True, file_okay=False))
def info(root):
    """Print what the cache at ROOT holds and who made it.

    Example: dimefm cache info cache/images
    """
    from dimefm.cache import Manifest

    for folder in _caches(root):
        click.echo(f"{folder}\n{_indent(Manifest.read(folder).describe())}")


@command.command("verify")
@click.argument("root", type=click.Path(exists=True, file_okay=False))
@click.option("--sha256", is_flag=True, help="Hash and read every shard instead of comparing sizes.")
def verify(root, sha256):
    """Check that the cache at ROOT is whole.

    Example: dimefm cache verify cache/images --sha256
    """
    from dimefm.cache import FeatureCache

    for folder in _caches(root):
        cache = FeatureCache(folder)
        checked = cache.verify(sha256)
        click.echo(
            f"{folder}: {checked} shards, {len(cache):,} rows, {'SHA-256 and rows' if sha256 else 'sizes'} as recorded"
        )


def _caches(root):
    """Return the cache folders that ROOT means: itself, or its images/ and texts/."""
    from pathlib import Path

    inner = [Path(root) / name for name in ("images", "texts") if (Path(root) / name).is_dir()]
    return [Path(root)] if (Path(root) / "manifest.json").exists() or not inner else inner


def _indent(text):
    return "\n".join("  " + line for line in text.splitlines())
