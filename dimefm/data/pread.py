"""Read a file at byte offsets, from several threads and processes."""

from __future__ import annotations

import os
from pathlib import Path

from dimefm.storage.reading import patiently


class PreadFile:
    """A file that is read at byte offsets; every process that uses the object opens it once."""

    def __init__(self, path: Path):
        self.path = path
        self._handle: tuple[int, int] | None = None  # (process, file descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end of the file.

        Raises DataError when the machine fails to read.
        """
        return patiently(lambda: self._read(offset, size), self.path)

    def _read(self, offset: int, size: int) -> bytes:
        descriptor = self._descriptor()
        try:
            return _read_all(descriptor, size, offset)
        except OSError:
            # A stale handle never reads again. Other threads may use it, so it is not closed.
            self._handle = None
            raise

    def _descriptor(self) -> int:
        """Return the descriptor by which this process reads the file."""
        process = os.getpid()
        if self._handle is None or self._handle[0] != process:
            self._handle = (process, os.open(self.path, os.O_RDONLY))
        return self._handle[1]

    def __getstate__(self):
        return {**self.__dict__, "_handle": None}

    def __del__(self):
        handle = getattr(self, "_handle", None)
        if handle is None:
            return
        process, descriptor = handle
        if process == os.getpid():
            os.close(descriptor)


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
