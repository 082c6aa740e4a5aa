"""Sources at a URL: listed as local sources would be, and then copied to this machine.

A shard brings the files that its reader looks for in the same folder. The files that a table names
are not copied.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

from dimefm.data.folders import (
    CLASS_FILE,
    TEMPLATE_FILES,
    are_images,
    refuse_mixtures,
    shards_among,
)
from dimefm.data.image_files import has_litter
from dimefm.errors import DataError
from dimefm.runtime.printable import masked
from dimefm.storage.remote import fetch, filesystem, forget, is_url, local_path, reported, stat

AT_ONCE = 8  # files that are copied at a time
COMPANIONS = {".tsv": (".lineidx", ".linelist")}  # of a shard, by its ending
CLASS_FILES = (CLASS_FILE, *TEMPLATE_FILES)
# Folders above a shard's folder that may hold class files: NAME/data/train/00.tar
CLASSES_ABOVE = 2

Info = Mapping[str, Any]  # what a store says of a file or folder


@dataclass(frozen=True)
class Remote:
    """A remote file, or a folder of images, with what the store says of it."""

    url: str
    info: Info

    @property
    def is_folder(self) -> bool:
        """Whether this is a folder."""
        return self.info["type"] == "directory"


def join(root: str, name: str = "") -> str:
    """Return the URL of ``name`` below ``root``, or of ``root`` itself.

    ``..`` leads upward as in a path.
    """
    protocol, _, top = root.partition("://")
    path = posixpath.normpath(posixpath.join(top, name))
    return f"{protocol}://{path}"


def above(url: str) -> str | None:
    """Return the URL of the folder that holds ``url``; None for the topmost."""
    protocol, _, path = url.partition("://")
    folder, _, _ = path.rpartition("/")
    if not folder.strip("/"):
        return None
    return f"{protocol}://{folder}"


def find(url: str, kind: str, input_format: str | None) -> list[Remote]:
    """Return the shard files and image folders of a URL, in order: a file, a folder, a pattern.

    Raises DataError when there is nothing, or when it is not clear which files are meant.
    """
    info = stat(url)
    if info is not None:
        matches = [Remote(url, info)]
    elif has_magic(url):
        matches = _matches(url)
    else:
        matches = []
    if not matches:
        raise DataError(
            f"source {masked(url)}: no such file or folder, and no pattern that matches one. Fix:"
            " check --dataroot"
        )
    shards: list[Remote] = []
    for match in matches:
        if match.is_folder:
            shards += _inside(match, kind, input_format)
        else:
            shards.append(match)
    return shards


def _matches(pattern: str) -> list[Remote]:
    """Return the files and folders that fit a pattern, sorted, as local ones match.

    ``**`` is ``*``, and only a pattern with a leading dot matches a name with one.
    """
    fs, path = filesystem(re.sub(r"\*\*+", "*", pattern))
    with reported(pattern):
        infos = fs.glob(path, detail=True)
    matches: list[Remote] = []
    for name, info in sorted(infos.items()):
        if not _is_hidden(name, path):
            matches.append(Remote(_url(name, pattern), info))
    return matches


def _is_hidden(name: str, pattern: str) -> bool:
    """Tell whether a part of a path has a leading dot where the pattern has none."""
    parts = name.strip("/").split("/")
    pattern_parts = pattern.strip("/").split("/")
    for part, pattern_part in zip(parts, pattern_parts, strict=True):
        if part.startswith(".") and not pattern_part.startswith("."):
            return True
    return False


def _url(name: str, like: str) -> str:
    """Return the URL of a path as the filesystem of the URL ``like`` has it."""
    if is_url(name):
        return name
    protocol, _, _ = like.partition("://")
    return f"{protocol}://{name}"


def _inside(folder: Remote, kind: str, input_format: str | None) -> list[Remote]:
    """Return the shards directly inside a folder; without any, the folder of images."""
    files: dict[str, Info] = {}
    if input_format != "folder":
        files = _listed(folder.url, 1)
    names = shards_among(files, kind, input_format)
    refuse_mixtures(
        folder.url,
        names,
        kind,
        input_format,
        lambda: are_images(_listed(folder.url, 2)),
    )
    if names:
        return [Remote(f"{folder.url}/{name}", files[name]) for name in names]
    if kind == "text":
        raise DataError(
            f"{masked(folder.url)}: no files of sentences in this folder. Fix: name the folder or"
            " the files that hold them"
        )
    return [folder]


def _listed(url: str, depth: int | None = None) -> dict[str, Info]:
    """Return the files in a folder, and ``depth - 1`` folders further down.

    The result maps the path relative to the folder to the store's description.

    Raises DataError when the store lists a file that is not in the folder.
    """
    fs, path = filesystem(url)
    with reported(url):
        infos = fs.find(path, maxdepth=depth, detail=True)
    top = path.rstrip("/") + "/"
    listed: dict[str, Info] = {}
    for name, info in infos.items():
        if not name.startswith(top) or ".." in name.split("/"):
            raise DataError(
                f"{masked(url)}: the listing names '{name}', which leads outside that folder. Fix:"
                " name the files meant"
            )
        listed[name.removeprefix(top)] = info
    return listed


def copies(shards: list[Remote], kind: str, scratch: Path) -> list[Path]:
    """Return the local copies of files and image folders, with the files that belong to them.

    Several files are copied at a time. A folder's copy holds the images that the remote one has now
    and no others. Raises DataError when a file cannot be copied.
    """
    images: dict[str, list[Remote]] = {}  # of each folder
    files: dict[str, Info] = {}
    optional: set[str] = set()
    for shard in shards:
        if shard.is_folder:
            images[shard.url] = _images(shard.url)
        else:
            files[shard.url] = shard.info
            optional.update(_companions(shard.url))
    for in_folder in images.values():
        files.update((image.url, image.info) for image in in_folder)
    if kind == "pair":
        optional |= _class_files(shards)
    _fetch_all(files, optional, scratch)
    for url, in_folder in images.items():
        wanted = {local_path(image.url, scratch) for image in in_folder}
        _drop_further_images(local_path(url, scratch), wanted)
    return [local_path(shard.url, scratch) for shard in shards]


def _fetch_all(files: Mapping[str, Info], optional: set[str], scratch: Path) -> None:
    """Fetch files by URL, several at a time, and the ``optional`` ones that exist."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting: list[Future] = []
        for url in sorted(optional):
            waiting.append(pool.submit(_fetch_optional, url, scratch))
        for url, info in files.items():
            waiting.append(pool.submit(fetch, url, scratch, info))
        try:
            for future in waiting:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch_optional(url: str, scratch: Path) -> None:
    """Fetch a file that may be absent; then an earlier copy of it is removed too."""
    info = stat(url)
    if info is None:
        forget(local_path(url, scratch))
    else:
        fetch(url, scratch, info)


def _images(folder: str) -> list[Remote]:
    """Return the image files in a folder at any depth; raise DataError when there are none."""
    images: list[Remote] = []
    for name, info in _listed(folder).items():
        if are_images([name]) and not has_litter(name):
            images.append(Remote(f"{folder}/{name}", info))
    if not images:
        raise DataError(
            f"{folder}: no image files and no shards in this folder. Fix: name the folder that"
            " holds them"
        )
    return images


def _companions(url: str) -> list[str]:
    """Return the URLs of the files that a shard's reader looks for in its folder."""
    stem, ending = posixpath.splitext(url)
    return [stem + companion for companion in COMPANIONS.get(ending, ())]


def _class_files(shards: Iterable[Remote]) -> set[str]:
    """Return the URLs that may hold class names and templates of shards and image folders."""
    folders: set[str] = set()
    for shard in shards:
        folder = shard.url if shard.is_folder else above(shard.url)
        for _ in range(1 + CLASSES_ABOVE):
            if folder is None:
                break
            folders.add(folder)
            folder = above(folder)
    return {join(folder, name) for folder in folders for name in CLASS_FILES}


def _drop_further_images(folder: Path, wanted: set[Path]) -> None:
    """Remove image files from a copied folder that the remote one does not have any more."""
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if file not in wanted and are_images([name]):
                forget(file)
