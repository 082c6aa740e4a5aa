"""Read a file at byte offsets, from several threads and processes."""

from __future__ import annotations

import os
from pathlib import Path


class PreadFile:
    """A file that is read at byte offsets; every process that uses the object opens it once."""

    def __init__(self, path: Path):
        self.path = path
        self._handle: tuple[int, int] | None = None  # (process, file descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end of the file."""
        process = os.getpid()
        if self._handle is None or self._handle[0] != process:
            self._handle = (process, os.open(self.path, os.O_RDONLY))
        _, descriptor = self._handle
        return os.pread(descriptor, size, offset)

    def __getstate__(self):
        return {**self.__dict__, "_handle": None}

    def __del__(self):
        handle = getattr(self, "_handle", None)
        if handle is None:
            return
        process, descriptor = handle
        if process == os.getpid():
            os.close(descriptor)
