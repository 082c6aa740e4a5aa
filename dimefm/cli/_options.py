"""What several commands share: options that take many values after one flag."""

from __future__ import annotations

from collections.abc import Callable

import click

COLUMNS = (
    click.option("--image-column", metavar="NAME", help="Column or tar ending that holds images."),
    click.option("--text-column", metavar="NAME", help="Column or tar ending that holds sentences."),
    click.option("--key-column", metavar="NAME", help="Column that holds keys."),
    click.option("--separator", metavar="CHAR", help="Of CSV and TSV tables: one character, or tab."),
)


def column_options(command: Callable) -> Callable:
    """Add the options that say which columns of a table hold what."""
    for option in reversed(COLUMNS):
        command = option(command)
    return command


def dashed(name: str) -> str:
    """Return an option's name with dashes: ``--use_pvl_loss``, as DIME-FM spells it, is ``--use-pvl-loss``."""
    return name.replace("_", "-") if name.startswith("--") else name


class ManyValues(click.Command):
    """A command whose repeatable options also take several values at once: ``--images a b c`` is ``--images a --images b
    --images c``, also after ``--images=a``, so that a shell may expand a pattern there. Underscores in option names are
    read as dashes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the flag before each further value, then parse as usual."""
        many = {flag for p in self.params if isinstance(p, click.Option) and p.multiple for flag in p.opts}
        spelled: list[str] = []
        flag, filled = None, False
        for arg in args:
            name, equals, value = arg.partition("=")
            arg = dashed(name) + equals + value
            if arg.startswith("-") and arg != "-":
                flag = dashed(name) if dashed(name) in many else None
                filled = bool(equals)
            elif flag is not None:
                spelled += [flag] if filled else []
                filled = True
            spelled.append(arg)
        return super().parse_args(ctx, spelled)
