"""``dimefm recipes``."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result

TERMINAL = 80  # columns of the list


@click.command(
    "recipes",
    context_settings=CONTEXT,
    short_help="List the recipes that come with dimefm, or print some.",
)
@click.argument("names", nargs=-1)
def command(names):
    """List the recipes of published students; with NAMES, print these in full.

    train --recipe NAME and run NAME take the names. To change a recipe, write a file with base =
    "PATH" and the keys that differ, or pass --set.

    \b
    Example:
      dimefm recipes clip_kd_vit_t16
    """
    from dimefm.recipe.presets import path_of, presets, title

    if names:
        paths = {name: path_of(name) for name in names}
        for path in paths.values():
            result(f"# {path}\n{path.read_text(encoding='utf-8')}")
        return {name: str(path) for name, path in paths.items()}
    listed = {name: title(path) for name, path in presets().items()}
    formatter = click.HelpFormatter(width=TERMINAL)
    formatter.write_dl(list(listed.items()))
    result(formatter.getvalue().rstrip("\n"))
    return listed
