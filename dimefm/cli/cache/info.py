"""``dimefm cache info``."""

from __future__ import annotations

import textwrap

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli.cache import caches


@click.command(
    "info", context_settings=CONTEXT, short_help="Print the content and the encoder of a cache."
)
@click.argument("root")
def command(root):
    """Print the content of the cache at ROOT, a folder or URL, and the encoder that made it.

    Example: dimefm cache info cache/images
    """
    from dimefm.cache import Manifest

    for folder in caches(root):
        summary = Manifest.read(folder).describe()
        click.echo(folder)
        click.echo(textwrap.indent(summary, "  "))
