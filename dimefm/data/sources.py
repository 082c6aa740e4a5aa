"""Open what the user names as one sequence of rows: files, folders, patterns and data lists.

All of these may be at a URL.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from dimefm import plugins
from dimefm.data import remote_sources
from dimefm.data.folders import are_images, readers
from dimefm.data.resolver import Resolver
from dimefm.data.rows import Columns, Rows, Shard
from dimefm.data.subshards import cut
from dimefm.errors import DataError
from dimefm.runtime.text import utf8_name
from dimefm.storage import open_files
from dimefm.storage.remote import is_url, local_path, scratch_folder

ARCHIVES = (".zip", ".7z", ".rar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
SPARE_FILES = 128  # that a process opens besides shards and their features
HEADROOM = 1024  # open files by which the limit is raised beyond what is needed


def open_rows(
    sources: Sequence[str | Path],
    kind: str = "image",
    *,
    dataroot: str | Path | None = None,
    input_format: str | None = None,
    columns: Columns | None = None,
    scratch: str | Path | None = None,
) -> Rows:
    """Open every source as one sequence of rows.

    ``sources`` are files, folders, glob patterns or ``.list`` files (see
    :func:`~dimefm.data.source_list.read_list`), or URLs of these; relative ones are looked up under
    ``dataroot`` when it is given. A shard knows the number of its source and its weight there.
    ``kind`` names what is wanted of each row: its ``"image"``, its ``"text"``, or both as a
    ``"pair"``; other columns are not read. ``input_format`` (a file of ``data/formats/``) overrides
    detection. Remote files are copied to ``scratch`` (None: see
    :func:`~dimefm.storage.remote.scratch_folder`) and stay there.

    Raises DataError when a source is missing, of no known format, or lacks what ``kind`` asks for.
    """
    root = local_root(dataroot, scratch)
    if root is not None and not is_url(dataroot) and not root.is_dir():
        raise DataError(f"--dataroot {root}: there is no such folder. Fix: check the path")
    resolver = Resolver(kind, input_format, dataroot, scratch_folder(scratch))
    paths: list[Path] = []
    entries: list[int] = []
    weights: list[float] = []
    for entry, source in enumerate(sources):
        for path, weight in resolver.resolve(source):
            paths.append(path)
            entries.append(entry)
            weights.append(weight)
    _check_paths(paths, kind)
    names = shard_names(paths, root, scratch)
    columns = columns or Columns()
    formats = [_reader(input_format or _format_of(path, kind)) for path in paths]
    _allow_open_files(formats)
    shards: list[Shard] = []
    skipped = resolver.skipped
    for reader, path, name, entry, weight in zip(
        formats, paths, names, entries, weights, strict=True
    ):
        for shard in reader.open_shards(path, name, kind, columns):
            shard.entry = entry
            shard.weight = weight
            if shard.skipped is not None:
                skipped.update(shard.skipped)
            shards += cut(shard)
    return Rows(shards, skipped)


@functools.cache
def _reader(format_: str) -> ModuleType:
    """Return the module that reads a format; raise DataError when there is none."""
    return plugins.module("sources", format_, DataError)


def _check_paths(paths: list[Path], kind: str) -> None:
    """Raise DataError when there are no shards, or one is listed twice."""
    if not paths:
        raise DataError(f"no {kind} source was given. Fix: name one")
    repeated = _first_repeated(paths)
    if repeated is not None:
        raise DataError(f"{repeated} is listed twice. Fix: list each shard once")


def _first_repeated(values: list) -> object | None:
    """Return the first value that occurs again, None when all are different."""
    counts = Counter(values)
    for value, count in counts.items():
        if count > 1:
            return value
    return None


def local_root(dataroot: str | Path | None, scratch: str | Path | None = None) -> Path | None:
    """Return the local folder of a data root, None for None.

    For a URL it is the folder of its local copy.
    """
    if dataroot is None:
        return None
    if is_url(dataroot):
        return local_path(remote_sources.join(str(dataroot)), scratch_folder(scratch))
    return Path(dataroot)


def shard_names(
    paths: list[Path],
    root: Path | None,
    scratch: str | Path | None = None,
) -> list[str]:
    """Return the shards' names: their paths relative to ``root``.

    Shards outside the root are named relative to the common folder of those outside.

    Raises DataError when two names are equal, or when they would depend on where ``scratch`` is.
    """
    top = None if root is None else Path(os.path.abspath(root))
    outside = {path.parent for path in paths if top is None or not path.is_relative_to(top)}
    copies = scratch_folder(scratch)
    if len({folder.is_relative_to(copies) for folder in outside}) > 1:
        raise DataError(
            "sources here and at a URL share no folder that could name them. Fix: give --dataroot,"
            " that of either"
        )
    common = Path(os.path.commonpath(sorted(outside))) if outside else None
    names: list[str] = []
    for path in paths:
        base = common if path.parent in outside else top
        names.append(utf8_name(path.relative_to(base).as_posix()))
    _check_names(names)
    return names


def _check_names(names: list[str]) -> None:
    """Raise DataError for a shard name that is not UTF-8, and for two equal names."""
    for name in names:
        if not name.isascii() and not _is_utf8(name):
            raise DataError(
                f"{name!r}: the name is not UTF-8, so no manifest can hold it. Fix: rename the file"
                " or folder"
            )
    repeated = _first_repeated(names)
    if repeated is not None:
        raise DataError(
            f"two sources are both called {repeated}. Fix: give a --dataroot that holds them all"
        )


def _is_utf8(name: str) -> bool:
    """Tell whether a name that the file system gave has no byte that is not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _allow_open_files(formats: Sequence[ModuleType]) -> None:
    """Raise this process's soft limit of open files: a shard and its features keep one open each.

    With a lower limit most formats open a file for each read. Raises DataError where those that
    keep every file open have more than the system allows.
    """
    limit = open_files.raise_limit(2 * len(formats) + SPARE_FILES + HEADROOM)
    kept_open = sum(getattr(reader, "KEEPS_OPEN", False) for reader in formats)
    needed = 2 * kept_open + SPARE_FILES
    if kept_open and limit < needed:
        raise DataError(
            f"{kept_open} shards need {needed} open files, this system allows {limit}. Fix: raise"
            " it with ulimit -n"
        )


def expand(
    source: str | Path,
    root: str | Path | None,
    kind: str = "image",
    input_format: str | None = None,
    scratch: str | Path | None = None,
) -> list[Path]:
    """Return the shard files (or image folders) of one source, in order, as absolute paths.

    Remote ones are copied below ``scratch`` first.
    """
    resolver = Resolver(kind, input_format, root, scratch_folder(scratch))
    return [path for path, _ in resolver.resolve(source)]


def _format_of(path: Path, kind: str) -> str:
    """Return the name of the format that reads ``path``.

    Raises DataError when no format claims the file, or several do.
    """
    if path.is_dir():
        return "folder"
    claims: list[str] = []
    known: set[str] = set()
    for name, reader in readers(kind):
        known.update(reader.SUFFIXES)
        if path.name.endswith(reader.SUFFIXES) and reader.claims(path):
            claims.append(name)
    if len(claims) == 1:
        return claims[0]
    if kind != "text" and are_images([path.name]):
        raise DataError(
            f"{path}: is one image. Fix: name its folder, or a table or .list of what is in several"
        )
    if path.name.lower().endswith(ARCHIVES):
        raise DataError(
            f"{path}: is a packed archive, expected a folder, a plain .tar or a table. Fix: unpack"
            " it, and name the folder or the .tar"
        )
    if claims:
        reason = f"it could be {' or '.join(claims)}"
    else:
        reason = f"known endings: {' '.join(sorted(known))} or a folder of images"
    raise DataError(
        f"{path}: cannot tell its format for {kind} rows ({reason}). Fix: pass --input-format"
    )
