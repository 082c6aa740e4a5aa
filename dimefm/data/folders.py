"""Tell which files of a folder are meant: shards, by the endings of their names, or images.

The folder may be remote.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from types import ModuleType

from dimefm import plugins
from dimefm.data.image_files import OF_OTHER_PROGRAMS, is_litter, is_named_as_image, reason_of
from dimefm.data.skipped import Skipped
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
COMPANIONS = (".lineidx", ".linelist")  # end the files that belong to a shard
LISTING_ENDINGS = {"parquet", "csv", "tsv", "jsonl"}
STATS = "_stats.json"  # ends a file that img2dataset writes next to each shard
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


def shards_among(names: Collection[str], kind: str, input_format: str | None) -> list[str]:
    """Return the names of shard files among the files of a folder, sorted.

    Hidden files, text files that only describe the set, text files that belong to the image of
    their name, and tables that list the content of a tar are no shards.
    """
    suffixes = _suffixes(kind, input_format)
    shards: list[str] = []
    for name in names:
        if name.endswith(suffixes) and not describes(name) and not is_litter(name):
            shards.append(name)
    listings = _listings(names) if input_format is None else set()
    belong_to_images = input_format is None and _are_texts_of_images(names, shards)
    if belong_to_images:
        shards = [name for name in shards if not name.endswith(".txt")]
    return sorted(set(shards) - listings)


def _listings(names: Collection[str]) -> set[str]:
    """Return the tables next to shards that list their content: img2dataset's, and others' alike.

    Such a table is called like a tar, or like a ``NAME_stats.json``, in the same folder.
    """
    known = set(names)
    listings: set[str] = set()
    for name in names:
        stem, _, ending = name.rpartition(".")
        if ending in LISTING_ENDINGS:
            lists_tar = f"{stem}.tar" in known
            lists_files = ending == "parquet" and f"{stem}{STATS}" in known
            if lists_tar or lists_files:
                listings.add(name)
    return listings


def _are_texts_of_images(names: Collection[str], shards: list[str]) -> bool:
    """Tell whether the text files among ``shards`` have the names of images: NAME.txt, NAME.jpg."""
    texts = [name.removesuffix(".txt") for name in shards if name.endswith(".txt")]
    stems = {name.rpartition(".")[0] for name in names if is_named_as_image(name)}
    of_images = stems.intersection(texts)
    return bool(of_images) and 2 * len(of_images) >= len(texts)


def note_other_files(
    folder: str | Path, names: Collection[str], shards: list[str], skipped: Skipped
) -> None:
    """Count the files of a folder of shards that are none."""
    taken = set(shards)
    listings = _listings(names)
    for name in names:
        if name in taken or name.endswith(COMPANIONS) or describes(name):
            continue
        reason = reason_of(name)
        if is_litter(name):
            reason = OF_OTHER_PROGRAMS
        elif name in listings:
            reason = "tables of what the shards hold"
        skipped.add(reason, name)


def describes(name: str) -> bool:
    """Tell whether a file is about the set: class names, templates, a licence."""
    stem, _, _ = name.partition(".")
    return stem.casefold() in DESCRIPTIONS


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
    _refuse_tars_and_tables(folder, shards, input_format)
    if shards and kind != "text" and input_format is None and holds_images():
        files = "shard file" if len(shards) == 1 else "shard files"
        raise DataError(
            f"{folder}: holds images and {len(shards)} {files} ({first_few(shards, NAMED)}). Fix:"
            " pass --input-format folder for the images, or name the file meant"
        )


def _any_begins(names: list[str], begin: str) -> bool:
    """Tell whether a name begins with ``begin``, in any case."""
    return any(name.casefold().startswith(begin) for name in names)


def _refuse_tars_and_tables(
    folder: str | Path, shards: list[str], input_format: str | None
) -> None:
    """Raise DataError for tars next to other shards, which seldom are all meant."""
    tars = [name for name in shards if name.endswith(".tar")]
    others = [name for name in shards if not name.endswith(".tar")]
    if input_format is None and tars and others:
        raise DataError(
            f"{folder}: holds tars ({first_few(tars, NAMED)}) and other files"
            f" ({first_few(others, NAMED)}). Fix: name those meant with a pattern, like"
            f" '{folder}/*.tar'"
        )


def are_images(names: Iterable[str]) -> bool:
    """Tell whether any of the file names is an image's."""
    return any(is_named_as_image(name) and not is_litter(name) for name in names)
