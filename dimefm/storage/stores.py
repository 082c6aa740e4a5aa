"""Where a cache lies: a local folder, or a folder at an fsspec URL.

In both a file appears under its name whole or not at all. On a local disk that takes a temporary
name, fsync of file and folder, and a rename; in an object store an upload becomes visible only when
it is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from dimefm.errors import CacheError
from dimefm.runtime.printable import masked
from dimefm.runtime.text import system_name
from dimefm.storage import remote
from dimefm.storage.files import commit, part_of, write_text
from dimefm.storage.locks import Claim, claim

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # errors of a path at which there is no file


def open_store(root: str | Path, scratch: str | Path | None = None) -> Store:
    """Return the store at ``root``, a path or an fsspec URL.

    ``scratch`` is the folder for local copies of remote files.
    """
    if isinstance(root, str) and remote.is_url(root):
        return RemoteStore(root, remote.scratch_folder(scratch))
    return Store(Path(root))


def safe(name: str) -> bool:
    """Return whether ``name`` is a plain relative path that stays inside its folder."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return False
    if "\0" in name or "\\" in name:
        return False
    has_drive = len(name) > 1 and name[1] == ":"
    return not has_drive


class Store:
    """A local folder."""

    def __init__(self, root: Path):
        self.root = root
        self._inner_folders: set[str] = set()  # that are folders inside the root, and no links

    def __str__(self) -> str:
        return str(self.root)

    @property
    def address(self) -> str:
        """The path or URL by which the store can be opened again; it is not for messages."""
        return str(self.root)

    def where(self, name: str) -> str:
        """Return the whole path of ``name``, for messages."""
        return str(self.root / name)

    def path(self, name: str) -> Path:
        """Return the path of ``name``.

        Raises CacheError when the path leads outside the folder, also through links.
        """
        path = self.root / system_name(name)
        if not safe(name) or not self._is_inside(path):
            raise CacheError(
                f"{self.root}: the file name {name!r} leads outside the cache, so the cache is not"
                " to be trusted. Fix: extract it again"
            )
        return path

    def _is_inside(self, path: Path) -> bool:
        """Tell whether a path leads into the folder, also through links.

        A folder is looked at once: a cache may have many thousands of files in it.
        """
        folder, _ = os.path.split(path)
        if folder in self._inner_folders and not os.path.islink(path):
            return True
        root = os.path.realpath(self.root)
        if not Path(os.path.realpath(path)).is_relative_to(root):
            return False
        real_folder = os.path.realpath(folder)
        if os.path.isdir(real_folder) and Path(real_folder).is_relative_to(root):
            self._inner_folders.add(folder)
        return True

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""
        try:
            status = os.stat(self.path(name))
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str) -> str | None:
        """Return the content of a text file, None when there is no such file."""
        path = self.path(name)
        if not path.is_file():
            return None
        return path.read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        """Write a text file, atomically."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)

    def local(self, name: str) -> Path:
        """Return a local path of the file, to read or map it."""
        return self.path(name)

    def part(self, name: str) -> Path:
        """Return the local path where ``name`` is to be written before :meth:`commit`."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # what a killed process of an earlier version left
        path.with_name(path.name + ".part").unlink(missing_ok=True)
        return part_of(path)

    def commit(self, part: Path, name: str) -> None:
        """Give the finished file ``part`` its name, durably."""
        commit(part, self.path(name))

    def claim(self, name: str, *, shared: bool = False, wait: bool = False) -> Claim | None:
        """Claim ``name`` for this process; see :func:`~dimefm.storage.locks.claim`."""
        return claim(self.path(name), shared=shared, wait=wait)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content; do nothing when there is none."""
        path = self.path(name)
        while path.is_dir():
            try:
                shutil.rmtree(path)
            except OSError as error:
                # another process removes the folder too, or puts its claim into it
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
        # a read-only disk refuses to remove even a file that does not exist
        if path.exists() or path.is_symlink():
            path.unlink(missing_ok=True)


class RemoteStore(Store):
    """A folder at an fsspec URL; its shards are copied once to ``scratch`` for reading."""

    def __init__(self, url: str, scratch: Path):
        super().__init__(remote.local_path(url, scratch))
        self.url = url.rstrip("/")
        self.scratch = scratch
        self.fs, self.base = remote.filesystem(self.url)

    def __str__(self) -> str:
        return masked(self.url)

    def where(self, name: str) -> str:
        return masked(f"{self.url}/{name}")

    @property
    def address(self) -> str:
        return self.url

    def _remote_path(self, name: str) -> str:
        self.path(name)  # refuses names that lead outside
        return f"{self.base}/{name}"

    def size(self, name: str) -> int | None:
        with remote.reported(self.where(name)):
            path = self._remote_path(name)
            if not self.fs.isfile(path):
                return None
            return self.fs.size(path)

    def read(self, name: str) -> str | None:
        with remote.reported(self.where(name)):
            path = self._remote_path(name)
            if not self.fs.isfile(path):
                return None
            content = self.fs.cat_file(path)
            return content.decode("utf-8")

    def write(self, name: str, text: str) -> None:
        with remote.reported(self.where(name)):
            path = self._remote_path(name)
            self.fs.makedirs(os.path.dirname(path), exist_ok=True)
            self.fs.pipe_file(path, text.encode("utf-8"))

    def local(self, name: str) -> Path:
        return remote.fetch(f"{self.url}/{name}", self.scratch)

    def commit(self, part: Path, name: str) -> None:
        with remote.reported(self.where(name)):
            path = self._remote_path(name)
            self.fs.makedirs(os.path.dirname(path), exist_ok=True)
            self.fs.put_file(str(part), path)
        part.unlink()

    def claim(self, name: str, *, shared: bool = False, wait: bool = False) -> Claim | None:
        """Grant the claim: an object store has no locks."""
        return Claim()

    def remove(self, name: str) -> None:
        with remote.reported(self.where(name)):
            path = self._remote_path(name)
            if self.fs.exists(path):
                self.fs.rm(path, recursive=True)
