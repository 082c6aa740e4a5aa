"""``dimefm cache``: one file per command, imported when it is used."""

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
def command():
    """Look into feature caches, check, convert and adopt them."""


def caches(root: str) -> Iterator[str]:
    """Yield the caches that ``root``, a folder or URL, means: itself, or its ``images`` and
    ``texts``.
    """
    from dimefm.cache.manifest import FILE
    from dimefm.storage.stores import open_store

    store = open_store(root)
    inner = [
        f"{root.rstrip('/')}/{name}"
        for name in ("images", "texts")
        if store.size(f"{name}/{FILE}") is not None
    ]
    yield from inner if inner and store.size(FILE) is None else [root]
