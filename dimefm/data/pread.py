"""Read a file at byte offsets, from several threads and processes.

Many files are kept open between reads. Where the system allows no more, a file is opened for each
read: a source may have more shards than a process may open files.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dimefm.storage import open_files
from dimefm.storage.reading import patiently

MOST_KEPT = 100_000  # files that a process keeps open
FEW_KEPT = 16  # files that any process may keep open

_lock = threading.Lock()
_kept = 0  # files that are kept open


class PreadFile:
    """A file that is read at byte offsets; every process that uses the object opens it once, where
    the system allows so many open files, else for each read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._handle: tuple[int, int] | None = None  # (process, file descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end of the file.

        Raises DataError when the machine fails to read.
        """
        return patiently(lambda: self._read(offset, size), self.path)

    def _read(self, offset: int, size: int) -> bytes:
        process = os.getpid()
        if self._handle is None or self._handle[0] != process:
            if not _may_keep():
                return self._read_once(offset, size)
            self._handle = (process, os.open(self.path, os.O_RDONLY))
            _count(1)
        try:
            return _read_all(self._handle[1], size, offset)
        except OSError:
            # A stale handle never reads again. Other threads may use it, so it is not closed.
            self._handle = None
            raise

    def _read_once(self, offset: int, size: int) -> bytes:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return _read_all(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def __getstate__(self):
        return {**self.__dict__, "_handle": None}

    def __del__(self):
        handle = getattr(self, "_handle", None)
        if handle is None:
            return
        process, descriptor = handle
        if process == os.getpid():
            os.close(descriptor)
            _count(-1)


def _may_keep() -> bool:
    """Tell whether one more file may be kept open."""
    if _kept < FEW_KEPT:
        return True
    limit = open_files.raise_limit(FEW_KEPT)
    return _kept < min(MOST_KEPT, limit // 2)


def _count(change: int) -> None:
    global _kept
    with _lock:
        _kept += change


def _read_all(descriptor: int, size: int, offset: int) -> bytes:
    """Return ``size`` bytes, fewer at the end of the file; one call of the system may give less."""
    data = os.pread(descriptor, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    count = len(data)
    while count < size:
        data = os.pread(descriptor, size - count, offset + count)
        if not data:
            break
        parts.append(data)
        count += len(data)
    return b"".join(parts)
