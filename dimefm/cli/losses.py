"""``dimefm losses``."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result


@click.command(
    "losses",
    context_settings=CONTEXT,
    short_help="List the losses of recipes, or describe some in full.",
)
@click.argument("names", nargs=-1)
def command(names):
    """List the losses that a recipe may have under [losses]; with NAMES, describe these in full.

    Each entry has what a loss needs, its options with their defaults, and its modules: these train
    with the student and are not part of the finished model.

    \b
    Example:
      dimefm losses clip_kd.fd
    """
    from dimefm.losses import Need, describe, terms

    descriptions = {}
    for name in names or terms():
        descriptions[name] = describe(name, in_full=bool(names))
    result("\n\n".join(descriptions.values()))
    if not names:
        result(
            "\nNeeds: a recipe that lacks one is refused before its first step. The first value of"
            " an option is its default."
        )
        for need in Need:
            result(f"  {need:<16} {need.help}")
    return descriptions
