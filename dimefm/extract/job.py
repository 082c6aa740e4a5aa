"""Engines: what runs an extraction, this process or a cluster. One file each, with a function
``run``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dimefm.data import Rows
from dimefm.errors import RecipeError
from dimefm.extract.extract import Mode, extract_several
from dimefm.extract.pipeline import Report
from dimefm.extract.sharding import Share
from dimefm.extract.stages.base import Settings
from dimefm.models.encoder import Encoder


@dataclass(frozen=True)
class Extraction:
    """What ``extract-features`` was asked, so that any process can do a share of it.

    ``teachers`` are pairs of a folder (see :func:`folders_of`) and what loads the encoder;
    ``sources`` are pairs of a kind, "image" or "text", and what opens its rows. The cache of each
    pair of them goes to ``out/FOLDER/KINDs``.
    """

    teachers: tuple[tuple[str, functools.partial[Encoder]], ...]  # of load_encoder
    sources: tuple[tuple[str, Callable[[], Rows]], ...]
    out: str
    settings: Settings
    mode: Mode = "create"
    scratch: str | None = None

    def places(self, kind: str) -> list[str]:
        """Return the folder or URL of each teacher's cache of ``kind``."""
        top = self.out.rstrip("/") or "/"
        return [
            "/".join(part for part in (top, folder, f"{kind}s") if part)
            for folder, _ in self.teachers
        ]

    def load(self) -> list[Encoder]:
        """Load all teachers."""
        return [load() for _, load in self.teachers]

    def open(self) -> list[tuple[str, Rows]]:
        """Open all sources and return (kind, rows) of each."""
        return [(kind, opened()) for kind, opened in self.sources]

    def run(
        self, encoders: list[Encoder], sources: list[tuple[str, Rows]], share: Share
    ) -> Iterator[Report]:
        """Do the shards of ``share`` of opened sources, and yield the report of each cache: of each
        kind all teachers'.
        """
        how: dict = {"mode": self.mode, "scratch": self.scratch, "share": share}
        for kind, rows in sources:
            caches = list(zip(encoders, self.places(kind), strict=True))
            yield from extract_several(caches, rows, kind, self.settings, **how)


def folders_of(teachers: Sequence[str]) -> list[str]:
    """Return the folder below --out of each teacher that is named so: none, "", for one alone.

    With several, a folder is the spec with ``_`` for all but letters, digits, ``.``, ``-`` and
    ``_``, without dots and ``_`` at its ends. Raises RecipeError when two teachers would have one
    folder.
    """
    if len(teachers) == 1:
        return [""]
    folders: dict[str, str] = {}
    for spec in teachers:
        folder = (
            re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]", "_", spec)).strip("._") or "teacher"
        )
        if folder in folders:
            raise RecipeError(
                f"--teacher {folders[folder]} and {spec}: both would write to the folder {folder}"
                " of --out; give each teacher once, and extract teachers of one name into folders"
                " of their own"
            )
        folders[folder] = spec
    return list(folders)
