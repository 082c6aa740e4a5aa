"""The command line: parse, call one function, print. One file per command, imported when it is
used.

Exit codes: 0 done, 1 the job could not be done (one line says why), 2 bad usage. ``--debug`` shows
tracebacks.
"""

from __future__ import annotations

import errno
import os

import click

import dimefm
from dimefm.cli._options import Lazy
from dimefm.errors import DimefmError

COMMANDS = {  # name -> module
    "run": "dimefm.cli.run",
    "extract-features": "dimefm.cli.extract_features",
    "pack": "dimefm.cli.pack",
    "train": "dimefm.cli.train",
    "eval": "dimefm.cli.eval",
    "runs": "dimefm.cli.runs",
    "cache": "dimefm.cli.cache",
    "losses": "dimefm.cli.losses",
    "prompts": "dimefm.cli.prompts",
    "quickstart": "dimefm.cli.quickstart",
}

KEPT = "interrupted; finished parts are kept, the same command goes on from there"
AFTER_INTERRUPT = {
    "extract-features": KEPT,
    "pack": KEPT,
    "eval": KEPT,
    "cache": KEPT,
    "quickstart": KEPT,
    "run": KEPT,
    "train": "interrupted; go on with --resume",
}


class Main(Lazy):
    """``dimefm``: errors of the user and of the machine are one line, an interrupt says how to go
    on.
    """

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(
                "\n" + AFTER_INTERRUPT.get(ctx.invoked_subcommand or "", "interrupted"), err=True
            )
            ctx.exit(130)
        except Exception as error:
            line = explain(error)
            if line is None or ctx.params.get("debug"):
                raise
            raise click.ClickException(line) from error


def explain(error: Exception) -> str | None:
    """Return the line for people when the user or the machine is the cause of ``error``, None when
    dimefm is.
    """
    if isinstance(error, DimefmError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = (str(error).splitlines() or [""])[0]
        return (
            f"out of memory{f': {first}' if first else ''}. Fix: lower --batch-size, or free memory"
            " of other programs"
        )
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        return (
            f"{os.fsdecode(error.filename)}: {reason}"
            if isinstance(error.filename, str | bytes)
            else reason
        )
    return None


@click.group(cls=Main, modules=COMMANDS)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(dimefm.__version__, prog_name="dimefm")
def main(debug: bool) -> None:
    """Distil a large CLIP into a small one, with no teacher in the training loop.

    extract-features caches the embeddings of a teacher, train trains a student on them, and eval
    scores the student. run does all three from one file. quickstart runs the whole pipeline on a
    small dataset in minutes.
    """
