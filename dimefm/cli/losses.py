"""``dimefm losses``."""

from __future__ import annotations

import click


@click.command("losses")
@click.argument("names", nargs=-1)
def command(names):
    """List the losses that a recipe can weigh under [losses]; with NAMES, describe these in full.

    Each line says what a term needs of the data and its options with their defaults; learnt are the parts that train with
    the student and are no part of what comes out.

    \b
    Example:
      dimefm losses clip_kd.fd
    """
    from dimefm.losses import described, terms

    click.echo("\n\n".join(described(name, whole=bool(names)) for name in names or terms()))
