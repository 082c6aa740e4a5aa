"""Sources at a URL: what is there is listed as a local source would be, and then copied, so that
all the rest is local.

A shard brings the files that its reader looks for beside it. The files that a table names do not
come along.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

from dimefm.data.folders import are_images, refuse_mixtures, shards_among
from dimefm.errors import DataError
from dimefm.storage.remote import fetch, filesystem, forget, is_url, local_path, reported, stat

AT_ONCE = 8  # files on their way
COMPANIONS = {".tsv": (".lineidx", ".linelist")}  # of a shard, by its ending
CLASS_FILES = ("classnames.txt", "templates.txt", "zeroshot_classification_templates.txt")
CLASSES_ABOVE = (
    2  # folders above a shard's own in which class files are looked for: NAME/data/train/00.tar
)


@dataclass(frozen=True)
class Remote:
    """A remote file, or a folder of images, with what the store says of it."""

    url: str
    info: Mapping[str, Any]

    @property
    def is_folder(self) -> bool:
        """Say whether this is a folder."""
        return self.info["type"] == "directory"


def join(root: str, name: str = "") -> str:
    """Return the URL of ``name`` below ``root``, or of ``root`` itself, where ``..`` leads upward
    as in a path.
    """
    protocol, _, top = root.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(top, name))}"


def above(url: str) -> str | None:
    """Return the URL of the folder that holds ``url``; None for the topmost."""
    protocol, _, path = url.partition("://")
    folder = path.rpartition("/")[0]
    return f"{protocol}://{folder}" if folder.strip("/") else None


def find(url: str, kind: str, input_format: str | None) -> list[Remote]:
    """Return the shard files and image folders that a URL stands for, in order: a file, a folder,
    or a pattern.

    Raises DataError when there is nothing, or when it cannot be told what is meant.
    """
    info = stat(url)
    found = [Remote(url, info)] if info is not None else _matches(url) if has_magic(url) else []
    if not found:
        raise DataError(
            f"source {url}: no such file or folder, and no pattern that matches one; check"
            " --dataroot"
        )
    return [
        shard
        for each in found
        for shard in (_inside(each, kind, input_format) if each.is_folder else [each])
    ]


def _matches(pattern: str) -> list[Remote]:
    """Return what fits a pattern, sorted, as local ones match: ``**`` is ``*``, and a leading dot
    must be asked for.
    """
    fs, path = filesystem(re.sub(r"\*\*+", "*", pattern))
    with reported(pattern):
        found = fs.glob(path, detail=True)
    asked = path.strip("/").split("/")
    return [
        Remote(_url(name, pattern), info)
        for name, info in sorted(found.items())
        if not any(
            n.startswith(".") > a.startswith(".")
            for n, a in zip(name.strip("/").split("/"), asked, strict=True)
        )
    ]


def _url(name: str, like: str) -> str:
    """Return the URL of a path as the filesystem of the URL ``like`` has it."""
    return name if is_url(name) else f"{like.partition('://')[0]}://{name}"


def _inside(folder: Remote, kind: str, input_format: str | None) -> list[Remote]:
    """Return the shards directly inside a folder, or the folder itself when it holds images
    instead.
    """
    files = {} if input_format == "folder" else _listed(folder.url, 1)
    shards = shards_among(files, kind, input_format)
    refuse_mixtures(
        folder.url, shards, kind, input_format, lambda: are_images(_listed(folder.url, 2))
    )
    if not shards and kind == "text":
        raise DataError(
            f"{folder.url}: no files of sentences in this folder; name the folder or the files that"
            " hold them"
        )
    return [Remote(f"{folder.url}/{name}", files[name]) for name in shards] or [folder]


def _listed(url: str, depth: int | None = None) -> dict[str, Mapping[str, Any]]:
    """Return the files in a folder, and ``depth - 1`` folders further down: path relative to it ->
    the store's description.

    Raises DataError when the store lists a file that is not in the folder.
    """
    fs, path = filesystem(url)
    with reported(url):
        found = fs.find(path, maxdepth=depth, detail=True)
    top = path.rstrip("/") + "/"
    stray = next(
        (name for name in found if not name.startswith(top) or ".." in name.split("/")), None
    )
    if stray is not None:
        raise DataError(
            f"{url}: the listing names '{stray}', which leads outside that folder; name the files"
            " meant"
        )
    return {name.removeprefix(top): info for name, info in found.items()}


def copies(found: list[Remote], kind: str, scratch: Path) -> list[Path]:
    """Return the local copies of files and image folders, with the files that belong to them;
    several come at once.

    A folder's copy holds the images that the remote one has now and no others. Raises DataError
    when one cannot be had.
    """
    images = {each.url: _images(each.url) for each in found if each.is_folder}
    shards = [each for each in found if not each.is_folder]
    companions = {name for shard in shards for name in _companions(shard.url)}
    companions |= _class_files(found) if kind == "pair" else set()
    files = {file.url: file.info for file in [*shards, *itertools.chain(*images.values())]}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting: list[Future] = [
            pool.submit(_fetch_if_there, url, scratch) for url in sorted(companions)
        ]
        waiting += [pool.submit(fetch, url, scratch, info) for url, info in files.items()]
        try:
            for each in waiting:
                each.result()
        finally:
            pool.shutdown(cancel_futures=True)
    for url, of_folder in images.items():
        _drop_others(
            local_path(url, scratch), {local_path(file.url, scratch) for file in of_folder}
        )
    return [local_path(each.url, scratch) for each in found]


def _images(folder: str) -> list[Remote]:
    """Return the image files in a folder at any depth; raise DataError when there are none."""
    files = [
        Remote(f"{folder}/{name}", info)
        for name, info in _listed(folder).items()
        if are_images([name])
    ]
    if not files:
        raise DataError(
            f"{folder}: no image files and no shards in this folder; name the folder that holds"
            " them"
        )
    return files


def _companions(url: str) -> list[str]:
    stem, ending = posixpath.splitext(url)
    return [stem + other for other in COMPANIONS.get(ending, ())]


def _class_files(found: Iterable[Remote]) -> set[str]:
    """Return where class names and templates of shards and image folders may lie."""
    folders: set[str] = set()
    for each in found:
        folder = each.url if each.is_folder else above(each.url)
        for _ in range(1 + CLASSES_ABOVE):
            folders |= {folder} if folder else set()
            folder = above(folder) if folder else None
    return {join(folder, name) for folder in folders for name in CLASS_FILES}


def _fetch_if_there(url: str, scratch: Path) -> None:
    """Fetch a file that may be absent; then an earlier copy of it goes too."""
    info = stat(url)
    if info is None:
        forget(local_path(url, scratch))
    else:
        fetch(url, scratch, info)


def _drop_others(folder: Path, wanted: set[Path]) -> None:
    """Remove image files from a copied folder that the remote one does not have (any more)."""
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if file not in wanted and are_images([name]):
                forget(file)
