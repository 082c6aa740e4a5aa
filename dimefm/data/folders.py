"""Tell which files of a folder are meant: shards, by the endings of their names, or images.

The folder may be remote.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from types import ModuleType

from dimefm import plugins
from dimefm.errors import DataError
from dimefm.runtime.text import first_few

CLASS_FILE = "classnames.txt"  # class names of a dataset, in the order of its labels
TEMPLATE_FILES = (  # prompt templates of a dataset, the first that exists is taken
    "templates.txt",
    "zeroshot_classification_templates.txt",
)
DESCRIPTIONS = {  # files that describe a set, by name without endings
    "classnames",
    "templates",
    "zeroshot_classification_templates",
    "readme",
    "license",
    "licence",
    "notice",
    "copying",
}
NAMED = 3  # files that a message names at most


@functools.cache
def readers(kind: str) -> tuple[tuple[str, ModuleType], ...]:
    """Return (name, module) of every format that can hold ``kind``."""
    needed = {"image", "text"} if kind == "pair" else {kind}
    able = []
    for name in plugins.names("sources"):
        reader = plugins.module("sources", name)
        if needed <= reader.KINDS:
            able.append((name, reader))
    return tuple(able)


def shards_among(names: Iterable[str], kind: str, input_format: str | None) -> list[str]:
    """Return the names of shard files, sorted, without text files that only describe the set."""
    suffixes = _suffixes(kind, input_format)
    shards: list[str] = []
    for name in names:
        stem, _, _ = name.partition(".")
        if name.endswith(suffixes) and stem.casefold() not in DESCRIPTIONS:
            shards.append(name)
    return sorted(shards)


def _suffixes(kind: str, input_format: str | None) -> tuple[str, ...]:
    """Return the endings of shard files, of one format if it is given."""
    if input_format:
        return plugins.module("sources", input_format, DataError).SUFFIXES
    suffixes: set[str] = set()
    for _, reader in readers(kind):
        suffixes.update(reader.SUFFIXES)
    return tuple(suffixes)


def refuse_mixtures(
    folder: str | Path,
    shards: list[str],
    kind: str,
    input_format: str | None,
    holds_images: Callable[[], bool],
) -> None:
    """Raise DataError when it is not clear which files of ``folder`` are meant.

    They may be shards or images, image shards or text shards.
    """
    if _any_begins(shards, "image") and _any_begins(shards, "text"):
        begin = "text" if kind == "text" else "image"
        pattern = f"{folder}/{begin}*{PurePosixPath(shards[0]).suffix}"
        raise DataError(
            f"{folder}: holds both image and text files ({first_few(shards, NAMED)}). Fix: name"
            f" those meant with a pattern, like '{pattern}'"
        )
    if shards and kind != "text" and input_format is None and holds_images():
        files = "shard file" if len(shards) == 1 else "shard files"
        raise DataError(
            f"{folder}: holds images and {len(shards)} {files} ({first_few(shards, NAMED)}). Fix:"
            " pass --input-format folder for the images, or name the file meant"
        )


def _any_begins(names: list[str], begin: str) -> bool:
    """Tell whether a name begins with ``begin``, in any case."""
    return any(name.casefold().startswith(begin) for name in names)


def are_images(names: Iterable[str]) -> bool:
    """Tell whether any of the file names is an image's."""
    from dimefm.data.formats.folder import IMAGE_SUFFIXES

    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
