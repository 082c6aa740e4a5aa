"""The extraction that a command describes, for any process or engine to run."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dimefm.data import Rows
from dimefm.errors import RecipeError
from dimefm.extract.extract import Mode, extract_several
from dimefm.extract.report import Report
from dimefm.extract.sharding import Share
from dimefm.extract.stages.base import Settings
from dimefm.models.encoder import Encoder
from dimefm.storage.out_folder import refuse_foreign


@dataclass(frozen=True)
class Extraction:
    """What ``extract-features`` was asked to do, so that any process can do a share of it.

    ``teachers`` are pairs (folder, function that loads the encoder), see :func:`folders_of`.
    ``sources`` are pairs (kind, function that opens the rows), with kind "image" or "text". The
    cache of each teacher and source goes to ``out/FOLDER/KINDs``.
    """

    teachers: tuple[tuple[str, functools.partial[Encoder]], ...]
    sources: tuple[tuple[str, Callable[[], Rows]], ...]
    out: str
    settings: Settings
    mode: Mode = "create"
    scratch: str | None = None

    def places(self, kind: str) -> list[str]:
        """Return the folder or URL of each teacher's cache of ``kind``."""
        root = self.out.rstrip("/") or "/"
        places = []
        for folder, _ in self.teachers:
            parts = [part for part in (root, folder, f"{kind}s") if part]
            places.append("/".join(parts))
        return places

    def load(self) -> list[Encoder]:
        """Load all teachers; raise ModelError for one that cannot encode what is given."""
        encoders = [load() for _, load in self.teachers]
        if any(kind == "text" for kind, _ in self.sources):
            for encoder in encoders:
                encoder.require_text()
        return encoders

    def open(self) -> list[tuple[str, Rows]]:
        """Open all sources and return (kind, rows) of each."""
        return [(kind, open_source()) for kind, open_source in self.sources]

    def run(
        self, encoders: list[Encoder], sources: list[tuple[str, Rows]], share: Share
    ) -> Iterator[Report]:
        """Extract the shards of ``share`` from opened sources, with loaded encoders.

        Yields the report of each cache: those of all teachers for the first source, then for the
        next. Raises DimefmError when ``out`` is a folder that holds something else than caches.
        """
        folders = [folder for folder, _ in self.teachers if folder]
        is_source = any(_holds(self.out, rows) for _, rows in sources)
        marks = ["images", "texts", *folders]
        refuse_foreign(self.out, "caches", marks, only_files=not is_source)
        for kind, rows in sources:
            caches = list(zip(encoders, self.places(kind), strict=True))
            yield from extract_several(
                caches,
                rows,
                kind,
                self.settings,
                mode=self.mode,
                scratch=self.scratch,
                share=share,
            )


def _holds(out: str, rows: Rows) -> bool:
    """Tell whether ``out`` is a folder of sources, whose files lie in folders of their own."""
    place = os.path.realpath(out)
    return any(os.path.realpath(shard.path) == place for shard in rows.shards)


def folders_of(teachers: Sequence[str]) -> list[str]:
    """Return each teacher's folder below --out; a single teacher has none, "".

    The folder of one of several teachers is its spec, with ``_`` in place of every character that
    is not a letter, digit, ``.``, ``-`` or ``_``, and without dots and ``_`` at its ends. Raises
    RecipeError when two teachers would have the same folder.
    """
    if len(teachers) == 1:
        return [""]
    spec_of: dict[str, str] = {}
    for spec in teachers:
        folder = _folder_of(spec)
        if folder in spec_of:
            raise RecipeError(
                f"--teacher {spec_of[folder]} and {spec}: both would write to the folder {folder}"
                " of --out. Fix: give each teacher once, and extract teachers of one name into"
                " folders of their own"
            )
        spec_of[folder] = spec
    return list(spec_of)


def _folder_of(spec: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", spec)
    folder = re.sub(r"\.{2,}", ".", safe).strip("._")
    return folder or "teacher"
