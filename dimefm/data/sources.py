"""From what the user names to shards: files, folders, patterns and ``.list`` files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from dimefm import plugins
from dimefm.data.parts import cut
from dimefm.data.rows import Columns, Rows, Shard
from dimefm.errors import DataError

DESCRIPTIONS = {  # files that describe a set, by name without endings
    "classnames", "templates", "zeroshot_classification_templates", "readme", "license", "licence", "notice", "copying",
}  # fmt: skip


def open_rows(
    sources: Sequence[str | Path],
    kind: str = "image",
    *,
    dataroot: str | Path | None = None,
    input_format: str | None = None,
    columns: Columns | None = None,
) -> Rows:
    """Open every source as one sequence of rows.

    ``sources`` are files, folders, glob patterns or ``.list`` files (one path per line); relative ones are looked up under
    ``dataroot`` when it is given. ``kind`` says what is wanted of each row: its ``"image"``, its ``"text"``, or both as a
    ``"pair"``; other columns are not read. ``input_format`` (a file of ``data/formats/``) overrides detection.

    Raises DataError when a source is missing, of no known format, or lacks what ``kind`` asks for.
    """
    root = Path(dataroot) if dataroot is not None else None
    if root is not None and not root.is_dir():
        raise DataError(f"--dataroot {root}: there is no such folder")
    paths = [path for source in sources for path in expand(source, root, kind, input_format)]
    if not paths:
        raise DataError(f"no {kind} source was given")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DataError(f"{twice} is named twice; every shard may stand once")
    names = shard_names(paths, root)
    columns = columns or Columns()
    _allow_open_files(len(paths))
    shards: list[Shard] = []
    for path, name in zip(paths, names, strict=True):
        reader = plugins.module("sources", input_format or _format_of(path, kind), DataError)
        shards += [part for shard in reader.open_shards(path, name, kind, columns) for part in cut(shard)]
    return Rows(shards)


def shard_names(paths: list[Path], root: Path | None) -> list[str]:
    """Return the shards' names: paths relative to ``root``, or to the common folder of those that lie outside it."""
    top = None if root is None else Path(os.path.abspath(root))
    outside = [path.parent for path in paths if top is None or not path.is_relative_to(top)]
    common = Path(os.path.commonpath(outside)) if outside else None
    bases = [common if path.parent in outside else top for path in paths]
    names = [path.relative_to(base).as_posix() for path, base in zip(paths, bases, strict=True)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two sources are both called {twice}; give a --dataroot that holds them all")
    return names


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
        raise DataError(f"{shards} shards need {needed} open files, this system allows {hard}; raise it with ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed + 1024, hard) if hard > 0 else needed + 1024, hard))


def expand(source: str | Path, root: str | Path | None, kind: str = "image", input_format: str | None = None) -> list[Path]:
    """Return the shard files (or image folders) that one source stands for, in order, as absolute paths."""
    source, root = str(source), None if root is None else Path(root)
    path = Path(source) if root is None or Path(source).is_absolute() else root / source
    if not path.exists() and root is not None and Path(source).exists():
        path = Path(source)
    if path.suffix == ".list" and path.is_file():
        top = root or path.parent
        return [found for line in read_list(path) for found in expand(_below(top, line, path), top, kind, input_format)]
    if path.is_dir():
        inner = [] if input_format == "folder" else _shard_files(path, kind, input_format)
        _refuse_mixtures(path, inner, kind, input_format)
        return inner or [Path(os.path.abspath(path))]
    if path.is_file():
        return [Path(os.path.abspath(path))]
    matches = sorted(glob.glob(str(path))) if glob.has_magic(str(path)) else []
    if not matches:
        raise DataError(f"source {path}: no such file or folder, and no pattern that matches one; check --dataroot")
    return [found for match in matches for found in expand(os.path.abspath(match), None, kind, input_format)]


def _below(top: Path, line: str, listed_in: Path) -> Path:
    """Return ``top / line``; raise DataError when a list's entry leads out of ``top`` by ``..`` or as an absolute path."""
    found = Path(os.path.abspath(top / line))
    if not found.is_relative_to(os.path.abspath(top)):
        raise DataError(f"{listed_in}: '{line}' leads outside {top}; give the folder that holds it with --dataroot")
    return found


def read_list(path: Path) -> list[str]:
    """Return the entries of a data list: one path per line; blank lines and lines that begin with ``#`` are skipped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); is this a list of paths?") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise DataError(f"{path}: the list is empty; write one shard path per line")
    nested = next((entry for entry in entries if entry.endswith(".list")), None)
    if nested:
        raise DataError(f"{path}: names another list, {nested}; a list names shards and folders only")
    return entries


def _readers(kind: str):
    """Yield (name, module) of every format that can hold ``kind``."""
    for name in plugins.names("sources"):
        reader = plugins.module("sources", name)
        if kind in reader.KINDS or (kind == "pair" and {"image", "text"} <= reader.KINDS):
            yield name, reader


def _shard_files(folder: Path, kind: str, input_format: str | None) -> list[Path]:
    """Return the shard files directly inside ``folder``, sorted, without text files that only describe the set."""
    asked = [(input_format, plugins.module("sources", input_format, DataError))] if input_format else _readers(kind)
    suffixes = {suffix for _, reader in asked for suffix in reader.SUFFIXES}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(tuple(suffixes)))
    return [Path(os.path.abspath(path)) for path in files if path.name.split(".")[0].casefold() not in DESCRIPTIONS]


def _refuse_mixtures(folder: Path, files: list[Path], kind: str, input_format: str | None) -> None:
    """Raise DataError when it cannot be told which files of ``folder`` are meant: shards or images, images or texts."""
    names = [file.name for file in files]
    if {"image", "text"} <= {start for start in ("image", "text") for name in names if name.casefold().startswith(start)}:
        pattern = folder / f"{'text' if kind == 'text' else 'image'}*{files[0].suffix}"
        raise DataError(
            f"{folder}: holds both image and text files ({_few(names)}); name those meant with a pattern, like '{pattern}'"
        )
    if names and kind != "text" and input_format is None and _holds_images(folder):
        count = f"{len(names)} shard file{'s' * (len(names) > 1)}"
        raise DataError(
            f"{folder}: holds images and {count} ({_few(names)}); say --input-format folder for the images, or name the "
            "file meant"
        )


def _holds_images(folder: Path) -> bool:
    """Say whether image files lie in ``folder`` or in a folder directly inside it."""
    from dimefm.data.formats.folder import IMAGE_SUFFIXES

    places = [folder, *(inner for inner in sorted(folder.iterdir()) if inner.is_dir())]
    return any(name.lower().endswith(IMAGE_SUFFIXES) for place in places for name in os.listdir(place))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _format_of(path: Path, kind: str) -> str:
    """Return the name of the format that reads ``path``; raise DataError when none or several claim it."""
    if path.is_dir():
        return "folder"
    claims = [name for name, reader in _readers(kind) if path.name.endswith(reader.SUFFIXES) and reader.claims(path)]
    if len(claims) == 1:
        return claims[0]
    known = sorted({suffix for _, reader in _readers(kind) for suffix in reader.SUFFIXES})
    found = f"it could be {' or '.join(claims)}" if claims else f"known endings: {' '.join(known)} or a folder of images"
    raise DataError(f"{path}: cannot tell its format for {kind} rows ({found}); say --input-format")
