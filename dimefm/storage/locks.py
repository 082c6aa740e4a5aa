"""Claims: which process works on what, so that several may extract into one folder.

A claim is an advisory lock (flock) on a small file. The operating system gives it back when its
process ends, however it ends, so a killed process never blocks another. Object stores have no such
lock: there each process needs work of its own.
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

UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What file systems answer that have no locks; there a claim is granted to everyone."""


class Claim:
    """What a process holds until it releases it; use it as a context manager or call
    :meth:`release`.
    """

    def __init__(self, descriptor: int | None = None, alone: Path | None = None):
        self._descriptor, self._alone = descriptor, alone

    def last(self) -> bool:
        """Tell whether no other process shares what this one holds; from then on none can. False
        where nobody knows.
        """
        try:
            if fcntl is None or self._descriptor is None:
                return False
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give the claim back; twice does no harm."""
        if self._descriptor is not None:
            if (
                self._alone is not None
            ):  # nobody else can hold a file that is not shared, so it leaves no trace
                with contextlib.suppress(OSError):
                    self._alone.unlink()
                    self._alone.parent.rmdir()
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim(path: Path, *, shared: bool = False, wait: bool = False) -> Claim | None:
    """Claim ``path``, a file that is made if need be; None when another process holds it and
    ``wait`` is not set.

    A ``shared`` claim goes together with other shared ones. Raises OSError when the file cannot be
    made.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # whoever finished the work removed the folder in this moment
            continue
        held = Claim(descriptor)
        try:
            _lock(descriptor, shared, wait)
        except BlockingIOError:
            held.release()
            return None
        except BaseException:
            held.release()
            raise
        if _names(path, descriptor):
            return Claim(descriptor, None if shared else path)
        held.release()


def _lock(descriptor: int, shared: bool, wait: bool) -> None:
    """Lock an open file; raise BlockingIOError when another process holds it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(
            descriptor,
            (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB),
        )
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _names(path: Path, descriptor: int) -> bool:
    """Tell whether ``path`` is still the file that was locked: its folder may have been removed and
    made anew.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
