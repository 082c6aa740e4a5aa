"""``dimefm cache info``."""

from __future__ import annotations

import textwrap

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli.cache import caches


@click.command(
    "info", context_settings=CONTEXT, short_help="Print what a cache holds and who made it."
)
@click.argument("root")
def command(root):
    """Print what the cache at ROOT, a folder or URL, holds and who made it.

    Example: dimefm cache info cache/images
    """
    from dimefm.cache import Manifest

    for folder in caches(root):
        click.echo(f"{folder}\n{textwrap.indent(Manifest.read(folder).describe(), '  ')}")
