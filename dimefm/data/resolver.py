"""From what the user names to shards: files, folders, patterns and data lists, also by URL."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dimefm.data import remote_sources
from dimefm.data.braces import expand_braces
from dimefm.data.folders import are_images, note_other_files, refuse_mixtures, shards_among
from dimefm.data.image_files import NO_FILE, OF_OTHER_PROGRAMS, asks, entries_of, is_litter
from dimefm.data.remote_sources import Remote
from dimefm.data.skipped import Skipped
from dimefm.data.source_list import read_list
from dimefm.errors import DataError
from dimefm.runtime.text import system_name
from dimefm.storage.remote import fetch, is_url, stat

Root = str | Path | None  # the data root as the user gave it: a folder or a URL


class Weighted(NamedTuple):
    """A shard file or image folder, and its weight in the data list that names it (else 1)."""

    place: Path | Remote
    weight: float = 1.0


@dataclass(frozen=True)
class Resolver:
    """Finds the shard files and image folders that a source stands for.

    ``kind`` is what is wanted of each row, ``input_format`` the name of a format or None. Relative
    sources are looked up under ``root``. Remote files are copied below ``scratch``. ``skipped``
    counts the files of folders that are no shards.
    """

    kind: str
    input_format: str | None
    root: Root
    scratch: Path
    skipped: Skipped = field(default_factory=Skipped)

    def resolve(self, source: str | Path) -> list[tuple[Path, float]]:
        """Return the shard files and image folders of one source, in order, with weights.

        The paths are absolute. Remote files are copied first; their paths are those of the copies.
        Raises DataError when the source stands for nothing.
        """
        place = self._place(str(source))
        shards = self._shards(place, self.root)
        remote = [shard.place for shard in shards if isinstance(shard.place, Remote)]
        copies = iter(self._copies(remote))
        resolved: list[tuple[Path, float]] = []
        for shard in shards:
            path = next(copies) if isinstance(shard.place, Remote) else shard.place
            resolved.append((path, shard.weight))
        return resolved

    def refuse_absent(self, source: str | Path) -> None:
        """Raise DataError for a local source that does not exist; no folder is read, no URL asked.

        A quick check before anything that takes time; :meth:`resolve` checks everything.
        """
        if is_url(str(source)) or (self.root is not None and is_url(self.root)):
            return
        place = self._place(str(source))
        if os.path.lexists(place):
            return
        for name in expand_braces(place):
            if not os.path.lexists(name):
                self._glob(Path(name))

    def _copies(self, remote: list[Remote]) -> list[Path]:
        """Return the local copies of remote shards, which are fetched together."""
        if not remote:
            return []
        return remote_sources.copies(remote, self.kind, self.scratch)

    def _place(self, source: str) -> str:
        """Return the path or URL that a source means.

        It is below the root if there is one; a source that only exists as it stands is taken so.
        """
        if is_url(source):
            return remote_sources.join(source)
        if self.root is None or Path(source).is_absolute():
            return source
        if is_url(self.root):
            below = remote_sources.join(str(self.root), source)
            exists_only_here = Path(source).exists() and stat(below) is None
        else:
            below = str(Path(self.root) / source)
            exists_only_here = Path(source).exists() and not Path(below).exists()
        return source if exists_only_here else below

    def _shards(self, place: str, root: Root) -> list[Weighted]:
        """Return the shards at a path or URL; entries of a list are looked up below ``root``."""
        if _is_list(place):
            return self._listed(place, root)
        shards: list[Weighted] = []
        for shard in self._matches(place):
            name = shard.url if isinstance(shard, Remote) else str(shard)
            if _is_list(name):  # a pattern matched it
                shards += self._listed(name, None)
            else:
                shards.append(Weighted(shard))
        return shards

    def _listed(self, place: str, root: Root) -> list[Weighted]:
        """Return the shards of a data list, whose entries are below ``root`` or the list's folder.

        A weight in the list holds for all shards of its entry. A pattern may match the list itself.
        """
        folder = root or _folder_of(place)
        path = fetch(place, self.scratch) if is_url(place) else Path(place)
        entries = [(_below(folder, line, place), weight) for line, weight in read_list(path)]
        shards: list[Weighted] = []
        for entry, weight in entries:
            for shard in self._matches(entry):
                name = shard.url if isinstance(shard, Remote) else str(shard)
                if not _is_list(name):
                    shards.append(Weighted(shard, weight))
                elif not _is_same(name, place):
                    raise DataError(
                        f"{place}: names another list, {name}; a list names shards and folders"
                        " only. Fix: name its shards, or give both lists as sources"
                    )
        if not shards:
            raise DataError(
                f"{place}: names nothing but itself. Fix: write one shard path per line"
            )
        return shards

    def _matches(self, place: str) -> list[Path] | list[Remote]:
        """Return the files and image folders of a file, a folder or a pattern, with braces or not.

        A name that has braces itself is taken as it stands.
        """
        if is_url(place):
            urls = expand_braces(place)
            if len(urls) == 1 or stat(place) is not None:
                return remote_sources.find(place, self.kind, self.input_format)
            remote: list[Remote] = []
            for url in urls:
                remote += remote_sources.find(url, self.kind, self.input_format)
            return remote
        names = [place] if os.path.lexists(place) else expand_braces(place)
        shards: list[Path] = []
        for name in names:
            shards += self._local(Path(name))
        return shards

    def _local(self, path: Path) -> list[Path]:
        """Return the files and image folders of a local file, folder or pattern."""
        if path.is_dir():
            return self._in_folder(path)
        if path.is_file():
            return [_absolute(path)]
        if path.exists():
            raise DataError(
                f"source {path}: is a pipe, a socket or a device. Fix: name a file or a folder"
            )
        shards: list[Path] = []
        for match in self._glob(path):
            shards += self._local(match)
        return shards

    def _glob(self, path: Path) -> list[Path]:
        """Return what a pattern matches, sorted, without what other programs leave.

        Raises DataError when there is nothing.
        """
        pattern = str(path)
        names = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []
        matches: list[Path] = []
        for name in names:
            match = Path(name)
            if is_litter(match.name) and match.name != path.name:
                self.skipped.add(OF_OTHER_PROGRAMS, name)
            else:
                matches.append(match)
        if not matches:
            raise DataError(
                f"source {path}: no such file or folder, and no pattern that matches one. Fix:"
                " check the path, or check --dataroot"
            )
        return matches

    def _in_folder(self, folder: Path) -> list[Path]:
        """Return the shard files directly inside a folder; without any, the folder of images."""
        if self.input_format == "folder":
            return [_absolute(folder)]
        files, folders, others = _listing(folder)
        names = shards_among(files, self.kind, self.input_format)
        refuse_mixtures(
            folder,
            names,
            self.kind,
            self.input_format,
            lambda: are_images(files) or any(_holds_images(folder / name) for name in folders),
        )
        if not names:
            return [_absolute(folder)]
        note_other_files(folder, files, names, self.skipped)
        for name in folders:
            self.skipped.add("folders next to shards", f"{name}/")
        for name in others:
            self.skipped.add(NO_FILE, name)
        return [_absolute(folder / name) for name in names]


def _listing(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the files, of the folders, and of all else directly inside a folder.

    Litter is only among the files. Raises DataError when the folder cannot be read.
    """
    files: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    for entry in entries_of(folder):  # which know what they are: there may be millions
        if asks(entry.is_file):
            files.append(entry.name)
        elif is_litter(entry.name):
            continue
        elif asks(entry.is_dir):
            folders.append(entry.name)
        else:
            others.append(entry.name)
    return files, sorted(folders), others


def _is_same(place: str, other: str) -> bool:
    """Tell whether two paths or URLs lead to one file."""
    if is_url(place) or is_url(other):
        return place == other
    return os.path.samefile(place, other)


def _absolute(path: Path) -> Path:
    """Return a path from the root of the file system; links stay as they are."""
    return Path(os.path.abspath(path))


def _is_list(place: str) -> bool:
    """Tell whether a data list is at a path or URL."""
    if not place.endswith(".list"):
        return False
    if not is_url(place):
        return Path(place).is_file()
    info = stat(place)
    return info is not None and info["type"] == "file"


def _folder_of(place: str) -> str | Path | None:
    """Return the folder that holds the file at a path or URL."""
    if is_url(place):
        return remote_sources.above(place)
    return Path(place).parent


def _below(top: str | Path, line: str, listed_in: str) -> str:
    """Return the place of a list's entry below ``top``; raise DataError when it leads elsewhere.

    A local list may also name URLs, but no ``file://``.
    """
    if _names_a_store(top, line, listed_in):
        return line
    if not is_url(line):
        line = system_name(line)
    if is_url(top):
        folder = remote_sources.join(str(top)).rstrip("/") + "/"
        place = remote_sources.join(line) if is_url(line) else remote_sources.join(str(top), line)
        is_inside = place.startswith(folder)
    else:
        folder = os.path.abspath(top)
        place = os.path.abspath(os.path.join(folder, line))
        is_inside = not is_url(line) and f"{place}/".startswith(f"{folder.rstrip('/')}/")
    if not is_inside:
        raise DataError(
            f"{listed_in}: '{line}' leads outside {top}. Fix: give the folder that holds it with"
            " --dataroot"
        )
    return place


def _names_a_store(top: str | Path, line: str, listed_in: str) -> bool:
    """Tell whether a line of a local list is a URL of another machine."""
    if not is_url(line):
        return False
    if is_url(top) or is_url(listed_in):
        return False
    return not line.startswith(("file:", "local:"))


def _holds_images(folder: Path) -> bool:
    """Tell whether image files are directly inside ``folder``."""
    return are_images(entry.name for entry in entries_of(folder))
