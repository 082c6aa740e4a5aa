"""The command line: parse, call one function, print. One file per command, imported when it is used.

Exit codes: 0 done, 1 the job could not be done (one line says why), 2 bad usage. ``--debug`` shows tracebacks.
"""

from __future__ import annotations

import errno
import importlib
import os

import click

import dimefm
from dimefm.errors import DimefmError

COMMANDS = {
    "extract-features": "extract_features",
    "train": "train",
    "eval": "eval",
    "cache": "cache",
    "prompts": "prompts",
    "quickstart": "quickstart",
}

KEPT = "interrupted; finished parts are kept, the same command goes on from there"
AFTER_INTERRUPT = {
    "extract-features": KEPT,
    "eval": KEPT,
    "quickstart": KEPT,
    "train": "interrupted; go on with --resume",
}


class Lazy(click.Group):
    """A group whose commands are imported when they are asked for, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"dimefm.cli.{COMMANDS[name]}").command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from dimefm.errors import did_you_mean

            raise click.UsageError(f"no command '{args[0]}': {did_you_mean(args[0], COMMANDS)}", ctx) from error

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\n" + AFTER_INTERRUPT.get(ctx.invoked_subcommand or "", "interrupted"), err=True)
            ctx.exit(130)
        except Exception as error:
            line = explain(error)
            if line is None or ctx.params.get("debug"):
                raise
            raise click.ClickException(line) from error


def explain(error: Exception) -> str | None:
    """Return the line for people when the user or the machine is the cause of ``error``, None when dimefm is."""
    if isinstance(error, DimefmError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = (str(error).splitlines() or [""])[0]
        return f"out of memory{f': {first}' if first else ''}; lower --batch-size, or free memory of other programs"
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason
    return None


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(dimefm.__version__, prog_name="dimefm")
def main(debug: bool) -> None:
    """Distil a large CLIP into a small one, with no teacher in the training loop.

    \b
    dimefm extract-features   run the teacher once; write its features to shards
    dimefm train              train a student on cached features
    dimefm eval elevater      zero-shot accuracy on up to 20 datasets
    dimefm quickstart         all three on small real data, in minutes
    """
