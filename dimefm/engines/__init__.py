"""Engines: what runs an extraction, this process or a cluster. One file each, with a function ``run``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dimefm.data import Rows
from dimefm.extract import Mode, extract
from dimefm.models.encoder import Encoder
from dimefm.pipeline import Report
from dimefm.share import Share
from dimefm.stages import Settings


@dataclass(frozen=True)
class Extraction:
    """What ``extract-features`` was asked, so that any process can do a share of it.

    ``sources`` are pairs of a kind, "image" or "text", and what opens its rows; the cache of each goes to ``out/KINDs``.
    """

    load: functools.partial[Encoder]  # of load_encoder
    sources: tuple[tuple[str, Callable[[], Rows]], ...]
    out: str
    settings: Settings
    mode: Mode = "create"
    scratch: str | None = None

    def place(self, kind: str) -> str:
        """Return the folder or URL of the cache of ``kind``."""
        return f"{self.out.rstrip('/') or '/'}/{kind}s"

    def open(self) -> list[tuple[str, Rows]]:
        """Open all sources and return (kind, rows) of each."""
        return [(kind, opened()) for kind, opened in self.sources]

    def run(self, encoder: Encoder, sources: list[tuple[str, Rows]], share: Share) -> Iterator[Report]:
        """Do the shards of ``share`` of opened sources, and yield the report of each cache."""
        how: dict = {"mode": self.mode, "scratch": self.scratch, "share": share}
        for kind, rows in sources:
            yield extract(encoder, rows, kind, self.place(kind), self.settings, **how)
