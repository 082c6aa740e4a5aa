"""Which files of a folder are meant: shards, by the endings of their names, or images. The folder
may be remote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType

from dimefm import plugins
from dimefm.errors import DataError

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


def readers(kind: str) -> Iterator[tuple[str, ModuleType]]:
    """Yield (name, module) of every format that can hold ``kind``."""
    for name in plugins.names("sources"):
        reader = plugins.module("sources", name)
        if kind in reader.KINDS or (kind == "pair" and {"image", "text"} <= reader.KINDS):
            yield name, reader


def shards_among(names: Iterable[str], kind: str, input_format: str | None) -> list[str]:
    """Return the names of shard files, sorted, without text files that only describe the set."""
    asked = (
        [(input_format, plugins.module("sources", input_format, DataError))]
        if input_format
        else readers(kind)
    )
    suffixes = tuple({suffix for _, reader in asked for suffix in reader.SUFFIXES})
    return sorted(
        n for n in names if n.endswith(suffixes) and n.split(".")[0].casefold() not in DESCRIPTIONS
    )


def refuse_mixtures(
    folder: str | Path,
    shards: list[str],
    kind: str,
    input_format: str | None,
    holds_images: Callable[[], bool],
) -> None:
    """Raise DataError when it cannot be told which files of ``folder`` are meant: shards or images,
    images or texts.
    """
    if {"image", "text"} <= {
        start for start in ("image", "text") for n in shards if n.casefold().startswith(start)
    }:
        pattern = (
            f"{folder}/{'text' if kind == 'text' else 'image'}*{PurePosixPath(shards[0]).suffix}"
        )
        raise DataError(
            f"{folder}: holds both image and text files ({_few(shards)}); name those meant with a"
            f" pattern, like '{pattern}'"
        )
    if shards and kind != "text" and input_format is None and holds_images():
        count = f"{len(shards)} shard file{'s' * (len(shards) > 1)}"
        raise DataError(
            f"{folder}: holds images and {count} ({_few(shards)}); say --input-format folder for"
            " the images, or name the file meant"
        )


def are_images(names: Iterable[str]) -> bool:
    """Say whether any of the file names is an image's."""
    from dimefm.data.formats.folder import IMAGE_SUFFIXES

    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
