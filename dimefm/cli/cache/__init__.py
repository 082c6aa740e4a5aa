"""``dimefm cache``: one file per command, imported when it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from dimefm.cli._options import Lazy

COMMANDS = {
    "info": "dimefm.cli.cache.info",
    "verify": "dimefm.cli.cache.verify",
}


@click.group("cache", cls=Lazy, modules=COMMANDS)
def command():
    """Look into feature caches, check, convert and adopt them."""


def caches(root: str) -> Iterator[Path]:
    """Yield the cache folders that ``root`` means: itself, or its ``images/`` and ``texts/``."""
    inner = [Path(root) / name for name in ("images", "texts") if (Path(root) / name).is_dir()]
    yield from [Path(root)] if (Path(root) / "manifest.json").exists() or not inner else inner
