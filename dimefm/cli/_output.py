"""Options that every command has, and what they change: ``-q``, ``-v``, ``--json``, ``--debug``.

A command prints its result with :func:`result` and returns the same facts as a dict or a list. With
``--json`` the text is not printed; the returned value is, as one JSON document on stdout.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import click

from dimefm.runtime import console

KEY = "dimefm.output"
HEADING = "Messages"
FIRST = "-q"
"""The first of the common options, where their section of a command's help begins."""


@dataclasses.dataclass
class Output:
    """What the common options of one call say, and its exit code."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    debug: bool = False
    code: int = 0


def settings(context: click.Context) -> Output:
    """Return the common options of the call that ``context`` belongs to."""
    return context.find_root().meta.setdefault(KEY, Output())


def _keep(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Return a callback that keeps a flag for the whole call, wherever it is given."""

    def keep(context: click.Context, _: click.Parameter, given: bool) -> None:
        if not given:
            return
        output = settings(context)
        setattr(output, name, True)
        if output.quiet and output.verbose:
            raise click.UsageError("-q and -v exclude each other. Fix: remove one")
        if output.quiet:
            console.set_level(console.Level.QUIET)
        elif output.verbose:
            console.set_level(console.Level.VERBOSE)

    return keep


def _flag(name: str, spellings: tuple[str, ...], text: str) -> click.Option:
    return click.Option(
        spellings, is_flag=True, expose_value=False, callback=_keep(name), is_eager=True, help=text
    )


def common_options() -> list[click.Option]:
    """Return the options that every command has."""
    return [
        _flag("quiet", ("-q", "--quiet"), "Print results and errors; no progress and no notes."),
        _flag("verbose", ("-v", "--verbose"), "Print details, as the whole recipe of a run."),
        _flag("json", ("--json",), "Print the result as one JSON document."),
        _flag("debug", ("--debug",), "Show the traceback of an error."),
    ]


def result(text: str) -> None:
    """Print a result on stdout; with ``--json`` the command's value is printed in its place."""
    if not settings(click.get_current_context()).json:
        click.echo(text)


def exit_with(code: int) -> None:
    """Let the command end with an exit code after its result is printed."""
    settings(click.get_current_context()).code = code


def document(value: Any) -> str:
    """Return a command's value as JSON: dataclasses are objects, paths are strings."""
    return json.dumps(value, default=_plain, ensure_ascii=False, indent=1)


def _plain(value: Any) -> Any:
    """Return a value that JSON knows for one that it does not."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: getattr(value, field.name) for field in fields}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
