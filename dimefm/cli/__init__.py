"""The command line: parse, call one function, print. One file per command, imported when it is
used.

Exit codes: 0 done, 1 the job could not be done (one line says why), 2 bad usage, 130 interrupted.
``--debug`` shows tracebacks.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

import dimefm
from dimefm.cli._options import Lazy, add_common_options
from dimefm.cli._output import document, settings
from dimefm.errors import DimefmError
from dimefm.runtime import console
from dimefm.runtime.bus_errors import explain_bus_errors
from dimefm.runtime.os_errors import REMEDIES
from dimefm.runtime.printable import message
from dimefm.storage.reading import lacks_memory
from dimefm.train.signals import raised

COMMANDS = {  # name -> module
    "run": "dimefm.cli.run",
    "extract-features": "dimefm.cli.extract_features",
    "pack": "dimefm.cli.pack",
    "train": "dimefm.cli.train",
    "eval": "dimefm.cli.eval",
    "predict": "dimefm.cli.predict",
    "export": "dimefm.cli.export",
    "runs": "dimefm.cli.runs",
    "cache": "dimefm.cli.cache",
    "import": "dimefm.cli.import_",
    "losses": "dimefm.cli.losses",
    "recipes": "dimefm.cli.recipes",
    "prompts": "dimefm.cli.prompts",
    "quickstart": "dimefm.cli.quickstart",
}

KEPT = "interrupted; finished parts are kept, the same command goes on from there"
UNCHANGED = "interrupted; nothing was changed, the same command starts again"
NOT_KEPT = "interrupted; nothing is kept, the same command starts again"
AFTER_INTERRUPT = {
    "extract-features": KEPT,
    "pack": KEPT,
    "eval": KEPT,
    "cache": KEPT,
    "cache info": UNCHANGED,
    "cache verify": UNCHANGED,
    "cache diff": UNCHANGED,
    "cache quarantine": UNCHANGED,
    "cache neighbours": NOT_KEPT,
    "export": NOT_KEPT,
    "quickstart": KEPT,
    "run": KEPT,
    "import": NOT_KEPT,
    "predict": NOT_KEPT,
    "train": "interrupted; the same command goes on, with --resume where --out has a checkpoint",
}
INTERRUPTED = 130

NO_THREAD = "can't start new thread"


class Main(Lazy):
    """``dimefm``: errors of the user and of the machine are one line, an interrupt says how to go
    on.
    """

    def main(self, args: Sequence[str] | None = None, **options):
        """Run the command line and exit with its code; an interrupt at any moment is one line."""
        words = sys.argv[1:] if args is None else list(args)
        if not options.pop("standalone_mode", True):
            return super().main(args, standalone_mode=False, **options)
        console.set_level(console.Level.NORMAL)
        explain_bus_errors()
        with console.printable_streams():
            code = self._run(args, words, options)
        sys.exit(code)

    def _run(self, args: Sequence[str] | None, words: Sequence[str], options: dict) -> int:
        """Run the command line and return its exit code."""
        try:
            with raised():  # SIGTERM and SIGHUP end a command as Ctrl-C does
                code = super().main(args, standalone_mode=False, **options)
        except (click.Abort, KeyboardInterrupt):
            _say_interrupted(words)
            return INTERRUPTED
        except click.ClickException as error:
            error.show()
            return error.exit_code
        return code if isinstance(code, int) else 0

    def invoke(self, ctx: click.Context) -> int:
        """Run the command, print its value with ``--json``, and return 0, or its exit code."""
        try:
            value = super().invoke(ctx)
        except click.exceptions.Exit as done:
            return done.exit_code
        except Exception as error:
            line = explain(error)
            if line is None or settings(ctx).debug:
                if isinstance(error, EOFError):  # click takes it for an interrupt
                    raise RuntimeError("a file ended early") from error
                raise
            raise click.ClickException(message(line)) from error
        if settings(ctx).json:
            click.echo(document(value))
        return settings(ctx).code


def _say_interrupted(words: Sequence[str]) -> None:
    """Print how to go on after an interrupt of the command that ``words`` name."""
    commands = [word for word in words if not word.startswith("-")]
    line = "interrupted"
    for name in (" ".join(commands[:2]), *commands):
        if name in AFTER_INTERRUPT:
            line = AFTER_INTERRUPT[name]
            break
    click.echo(f"\n{line}", err=True)


def explain(error: Exception) -> str | None:
    """Return the line for people when the user or the machine is the cause of ``error``, None when
    dimefm is.
    """
    if isinstance(error, DimefmError):
        return str(error)
    is_no_thread = isinstance(error, RuntimeError) and NO_THREAD in str(error)
    if lacks_memory(error) and not is_no_thread and not isinstance(error, OSError):
        lines = str(error).splitlines()
        reason = f": {lines[0]}" if lines else ""
        return f"out of memory{reason}. Fix: lower --batch-size, or free memory of other programs"
    if is_no_thread:
        return f"{NO_THREAD}. Fix: raise the limit of processes (ulimit -u), or lower --workers"
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        return _explain_os_error(error)
    return None


def _explain_os_error(error: OSError) -> str:
    """Return the file and the reason of an error of the operating system, and what to do."""
    line = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if isinstance(error.filename, str | bytes):
        line = f"{os.fsdecode(error.filename)}: {line}"
    remedy = REMEDIES.get(error.errno)
    if remedy is not None:
        line += f". Fix: {remedy}"
    return line


@click.group(cls=Main, modules=COMMANDS)
@click.version_option(dimefm.__version__, prog_name="dimefm")
def main() -> None:
    """Distil a large CLIP into a small one, with no teacher in the training loop.

    extract-features caches the embeddings of a teacher, train trains a student on them, and eval
    scores the student. run does all three from one file. quickstart runs the whole pipeline on a
    small dataset in minutes.
    """


add_common_options(main)
