"""From what the user names to shards: files, folders, patterns and ``.list`` files, here or at a
URL.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dimefm import plugins
from dimefm.data import remote_sources
from dimefm.data.folders import are_images, readers, refuse_mixtures, shards_among
from dimefm.data.rows import Columns, Rows, Shard
from dimefm.data.subshards import cut
from dimefm.errors import DataError
from dimefm.storage.remote import fetch, is_url, local_path, scratch_folder, stat


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

    ``sources`` are files, folders, glob patterns or ``.list`` files (see :func:`read_list`), or
    URLs of these; relative ones are looked up under ``dataroot`` when it is given. Each shard knows
    the number of its source and its weight there. ``kind`` says what is wanted of each row: its
    ``"image"``, its ``"text"``, or both as a ``"pair"``; other columns are not read.
    ``input_format`` (a file of ``data/formats/``) overrides detection. Remote files are copied to
    ``scratch`` (None: see :func:`~dimefm.storage.remote.scratch_folder`) and stay there.

    Raises DataError when a source is missing, of no known format, or lacks what ``kind`` asks for.
    """
    root = local_root(dataroot, scratch)
    if root is not None and not is_url(dataroot) and not root.is_dir():
        raise DataError(f"--dataroot {root}: there is no such folder")
    found = [_weighed(source, dataroot, kind, input_format, scratch) for source in sources]
    listed = [(entry, weight) for entry, shards in enumerate(found) for _, weight in shards]
    paths = [path for shards in found for path, _ in shards]
    if not paths:
        raise DataError(f"no {kind} source was given")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DataError(f"{twice} is named twice; every shard may stand once")
    names = shard_names(paths, root, scratch)
    columns = columns or Columns()
    _allow_open_files(len(paths))
    shards: list[Shard] = []
    for path, name, (entry, weight) in zip(paths, names, listed, strict=True):
        reader = plugins.module("sources", input_format or _format_of(path, kind), DataError)
        for shard in reader.open_shards(path, name, kind, columns):
            shard.entry, shard.weight = entry, weight
            shards += cut(shard)
    return Rows(shards)


def local_root(dataroot: str | Path | None, scratch: str | Path | None = None) -> Path | None:
    """Return the folder of a data root: itself, or where its local copy belongs when it is a URL;
    None for None.
    """
    if dataroot is None:
        return None
    return (
        local_path(remote_sources.join(str(dataroot)), scratch_folder(scratch))
        if is_url(dataroot)
        else Path(dataroot)
    )


def shard_names(
    paths: list[Path], root: Path | None, scratch: str | Path | None = None
) -> list[str]:
    """Return the shards' names: paths relative to ``root``, or to the common folder of those that
    lie outside it.

    Raises DataError when two names are equal, or when they would depend on where ``scratch`` is.
    """
    top = None if root is None else Path(os.path.abspath(root))
    outside = [path.parent for path in paths if top is None or not path.is_relative_to(top)]
    if len({folder.is_relative_to(scratch_folder(scratch)) for folder in outside}) > 1:
        raise DataError(
            "sources here and at a URL share no folder that could name them; give --dataroot, that"
            " of either"
        )
    common = Path(os.path.commonpath(outside)) if outside else None
    bases = [common if path.parent in outside else top for path in paths]
    names = [path.relative_to(base).as_posix() for path, base in zip(paths, bases, strict=True)]
    strange = next((name for name in names if not name.isascii() and not _is_utf8(name)), None)
    if strange is not None:
        raise DataError(
            f"{strange!r}: the name is not UTF-8, so no manifest can hold it; rename the file or"
            " folder"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"two sources are both called {twice}; give a --dataroot that holds them all"
        )
    return names


def _is_utf8(name: str) -> bool:
    """Tell whether a name that the file system gave has no byte that is not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _allow_open_files(shards: int) -> None:
    """Raise this process's soft limit of open files: a shard and its features each keep one open.

    Raises DataError when the system does not allow that many.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * shards + 128
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DataError(
            f"{shards} shards need {needed} open files, this system allows {hard}; raise it with"
            " ulimit -n"
        )
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(needed + 1024, hard) if hard > 0 else needed + 1024, hard)
    )


def expand(
    source: str | Path,
    root: str | Path | None,
    kind: str = "image",
    input_format: str | None = None,
    scratch: str | Path | None = None,
) -> list[Path]:
    """Return the shard files (or image folders) that one source stands for, in order, as absolute
    paths.

    Of remote ones these are copies below ``scratch``, which are fetched first.
    """
    return [path for path, _ in _weighed(source, root, kind, input_format, scratch)]


def _weighed(
    source: str | Path,
    root: str | Path | None,
    kind: str,
    input_format: str | None,
    scratch: str | Path | None,
) -> list[tuple[Path, float]]:
    """Return what :func:`expand` does, each with its weight in the list that names it (1 if none
    does).
    """
    folder = scratch_folder(scratch)
    found = _found(_place(str(source), root), root, kind, input_format, folder)
    remote = [each for each, _ in found if isinstance(each, remote_sources.Remote)]
    copied = iter(remote_sources.copies(remote, kind, folder) if remote else [])
    return [
        (next(copied) if isinstance(each, remote_sources.Remote) else each, weight)
        for each, weight in found
    ]


def _place(source: str, root: str | Path | None) -> str:
    """Return the path or URL that a source means: below ``root`` if there is one, but as it stands
    if only that exists.
    """
    if is_url(source):
        return remote_sources.join(source)
    if root is None or Path(source).is_absolute():
        return source
    if is_url(root):
        place = remote_sources.join(str(root), source)
        return source if Path(source).exists() and stat(place) is None else place
    path = Path(root) / source
    return source if Path(source).exists() and not path.exists() else str(path)


def _found(
    place: str, root: str | Path | None, kind: str, input_format: str | None, scratch: Path
) -> list[tuple[Path | remote_sources.Remote, float]]:
    """Return what stands at a path or URL, with weights; entries of a list are looked up below
    ``root``, else beside it.
    """
    if _is_list(place):
        top = root or (remote_sources.above(place) if is_url(place) else Path(place).parent)
        lines = read_list(fetch(place, scratch) if is_url(place) else Path(place))
        entries = [(_below(top, line, place), weight) for line, weight in lines]
        return [
            (each, w)
            for entry, w in entries
            for each, _ in _found(entry, top, kind, input_format, scratch)
        ]
    shards: list[tuple[Path | remote_sources.Remote, float]] = []
    for each in (
        remote_sources.find(place, kind, input_format)
        if is_url(place)
        else _local(Path(place), kind, input_format)
    ):
        found = each.url if isinstance(each, remote_sources.Remote) else str(each)
        shards += (
            _found(found, None, kind, input_format, scratch) if _is_list(found) else [(each, 1.0)]
        )  # of a pattern
    return shards


def _is_list(place: str) -> bool:
    """Say whether a data list is at a path or URL."""
    if not is_url(place):
        return place.endswith(".list") and Path(place).is_file()
    info = stat(place) if place.endswith(".list") else None
    return info is not None and info["type"] == "file"


def _local(path: Path, kind: str, input_format: str | None) -> list[Path]:
    """Return the shard files and image folders that a path stands for: a file, a folder, or a
    pattern.
    """
    if path.is_dir():
        names = (
            []
            if input_format == "folder"
            else (inner.name for inner in path.iterdir() if inner.is_file())
        )
        shards = shards_among(names, kind, input_format)
        refuse_mixtures(path, shards, kind, input_format, lambda: _holds_images(path))
        return [Path(os.path.abspath(path / name)) for name in shards] or [
            Path(os.path.abspath(path))
        ]
    if path.is_file():
        return [Path(os.path.abspath(path))]
    matches = sorted(glob.glob(str(path))) if glob.has_magic(str(path)) else []
    if not matches:
        raise DataError(
            f"source {path}: no such file or folder, and no pattern that matches one; check"
            " --dataroot"
        )
    return [found for match in matches for found in _local(Path(match), kind, input_format)]


def _below(top: str | Path, line: str, listed_in: str) -> str:
    """Return the place of a list's entry below ``top``; raise DataError when it leads out of there.

    A list that lies here may also name URLs, but no ``file://``.
    """
    if (
        is_url(line)
        and not is_url(top)
        and not is_url(listed_in)
        and not line.startswith(("file:", "local:"))
    ):
        return line
    if is_url(top):
        found = remote_sources.join(line) if is_url(line) else remote_sources.join(str(top), line)
        inside = found.startswith(remote_sources.join(str(top)).rstrip("/") + "/")
    else:
        found = os.path.abspath(Path(top) / line)
        inside = not is_url(line) and Path(found).is_relative_to(os.path.abspath(top))
    if not inside:
        raise DataError(
            f"{listed_in}: '{line}' leads outside {top}; give the folder that holds it with"
            " --dataroot"
        )
    return found


def read_list(path: Path) -> list[tuple[str, float]]:
    """Return the entries of a data list with their weights: a line is a path, which
    ``weight=NUMBER`` may follow (else 1); blank lines and lines that begin with ``#`` are skipped.

    Raises DataError when the list is not UTF-8, empty, names another list, or has a weight that is
    not a positive number.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); is this a list of paths?"
        ) from error
    entries = [
        _entry(line, path, number)
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not entries:
        raise DataError(f"{path}: the list is empty; write one shard path per line")
    nested = next((entry for entry, _ in entries if entry.endswith(".list")), None)
    if nested:
        raise DataError(
            f"{path}: names another list, {nested}; a list names shards and folders only"
        )
    return entries


def _entry(line: str, path: Path, number: int) -> tuple[str, float]:
    """Return (path, weight) of a line of a data list."""
    found = re.search(r"\s+weight=(\S*)$", line)
    if found is None:
        return line, 1.0
    entry = line[: found.start()]
    try:
        weight = float(found[1])
    except ValueError:
        weight = 0.0
    if not 0 < weight < math.inf:
        raise DataError(
            f"{path}, line {number}: weight '{found[1]}'; expected a positive number, e.g. {entry}"
            " weight=2"
        )
    return entry, weight


def _holds_images(folder: Path) -> bool:
    """Say whether image files lie in ``folder`` or in a folder directly inside it."""
    places = [folder, *(inner for inner in sorted(folder.iterdir()) if inner.is_dir())]
    return any(are_images(os.listdir(place)) for place in places)


def _format_of(path: Path, kind: str) -> str:
    """Return the name of the format that reads ``path``; raise DataError when none or several claim
    it.
    """
    if path.is_dir():
        return "folder"
    claims = [
        name
        for name, reader in readers(kind)
        if path.name.endswith(reader.SUFFIXES) and reader.claims(path)
    ]
    if len(claims) == 1:
        return claims[0]
    known = sorted({suffix for _, reader in readers(kind) for suffix in reader.SUFFIXES})
    if kind != "text" and are_images([path.name]):
        raise DataError(
            f"{path}: is one image; name its folder, or a table or .list of what is in several"
        )
    found = (
        f"it could be {' or '.join(claims)}"
        if claims
        else f"known endings: {' '.join(known)} or a folder of images"
    )
    raise DataError(f"{path}: cannot tell its format for {kind} rows ({found}); say --input-format")
