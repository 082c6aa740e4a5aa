"""Claims: they mark which process works on what, so that several may extract into one folder.

A claim is an advisory lock (flock) on a small file. The operating system releases it when its
process ends, however it ends, so a killed process never blocks another. Object stores have no
locks: there the processes must not share work.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ModuleNotFoundError:  # Windows: every claim is granted
    fcntl = None

# errors of file systems without locks, where every claim is granted
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Claim:
    """A claim that this process holds; use it as a context manager or call :meth:`release`.

    ``descriptor`` is the locked file, None for a claim that needs no lock. ``exclusive_path`` is
    its path when no other process can hold the claim; the file is then removed on release.
    """

    def __init__(self, descriptor: int | None = None, exclusive_path: Path | None = None):
        self._descriptor = descriptor
        self._exclusive_path = exclusive_path

    def last(self) -> bool:
        """Return whether no other process holds this claim; if so, none can take it from now on.

        False when that is unknown.
        """
        try:
            if fcntl is None or self._descriptor is None:
                return False
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Release the claim; a second call does nothing."""
        if self._descriptor is None:
            return
        if self._exclusive_path is not None:
            with contextlib.suppress(OSError):
                self._exclusive_path.unlink()
                self._exclusive_path.parent.rmdir()
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim(path: Path, *, shared: bool = False, wait: bool = False) -> Claim | None:
    """Claim ``path``, a file that is created if necessary.

    Without ``wait``, returns None when another process holds the claim. Several processes may hold
    a ``shared`` claim. Raises OSError when the file cannot be created.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # another process finished the work and removed the folder just now
        held = Claim(descriptor)
        try:
            _lock(descriptor, shared, wait)
        except BlockingIOError:
            held.release()
            return None
        except BaseException:
            held.release()
            raise
        if _is_at(path, descriptor):
            return Claim(descriptor, None if shared else path)
        held.release()


def _lock(descriptor: int, shared: bool, wait: bool) -> None:
    """Lock an open file; raise BlockingIOError when another process holds it."""
    if fcntl is None:
        return
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if not wait:
        operation |= fcntl.LOCK_NB
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` is still the locked file.

    Another process may have removed its folder and created it again.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
