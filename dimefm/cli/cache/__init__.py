"""``dimefm cache``: a file for each command, imported when the command is used."""

from __future__ import annotations

from collections.abc import Iterator

import click

from dimefm.cli._options import Lazy

COMMANDS = {
    "info": "dimefm.cli.cache.info",
    "verify": "dimefm.cli.cache.verify",
    "diff": "dimefm.cli.cache.diff",
    "quarantine": "dimefm.cli.cache.quarantine",
    "convert": "dimefm.cli.cache.convert",
    "adopt": "dimefm.cli.cache.adopt",
    "neighbours": "dimefm.cli.cache.neighbours",
}


@click.group("cache", cls=Lazy, modules=COMMANDS)
@click.pass_context
def command(context):
    """Inspect, check, convert and adopt feature caches."""
    from dimefm.train.signals import raised

    context.with_resource(raised())  # SIGTERM and SIGHUP end a command as Ctrl-C does


def lasting(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return where a command is to write; refuse a place that ends with this process."""
    if value.startswith("memory:"):
        raise click.BadParameter(
            f"{value} ends with this command. Fix: give a folder, or a URL of a store", context
        )
    return value


def caches(root: str) -> Iterator[str]:
    """Yield the caches of a folder or URL: itself, or ``images`` and ``texts`` inside it."""
    from dimefm.cache.manifest import FILE
    from dimefm.storage.stores import open_store

    store = open_store(root)
    inner = []
    for name in ("images", "texts"):
        if store.size(f"{name}/{FILE}") is not None:
            inner.append(f"{root.rstrip('/')}/{name}")
    root_is_cache = store.size(FILE) is not None
    if root_is_cache or not inner:
        yield root
    else:
        yield from inner
