"""``dimefm eval``: a file for each command, imported when the command is used."""

from __future__ import annotations

import click

from dimefm.cli._options import Lazy

COMMANDS = {
    "elevater": "dimefm.cli.eval.elevater",
    "folder": "dimefm.cli.eval.folder",
    "imagenet": "dimefm.cli.eval.imagenet",
    "retrieval": "dimefm.cli.eval.retrieval",
    "submission": "dimefm.cli.eval.submission",
    "agreement": "dimefm.cli.eval.agreement",
    "duplicates": "dimefm.cli.eval.duplicates",
    "suite": "dimefm.cli.eval.suite",
    "report": "dimefm.cli.eval.report",
}


@click.group("eval", cls=Lazy, modules=COMMANDS)
def command():
    """Score models, compare them, and show reports."""
