"""Claims: they mark which process works on what, so that several may extract into one folder.

A claim is an advisory lock (flock) on a small file. The operating system releases it when its
process ends, however it ends, so a killed process never blocks another. Some network file systems
and Windows have no such locks; a claim there says so (``is_locked``), and keeps nobody out.
:func:`claim_alone` falls back to a file that names its owner. Object stores have no locks: there
the processes must not share work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from types import TracebackType

from dimefm.storage.files import is_running

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

PLATFORM_HAS_LOCKS = fcntl is not None
# errors of file systems without locks
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Claim:
    """A claim that this process holds; use it as a context manager or call :meth:`release`.

    ``descriptor`` is the locked file, None for a claim that needs no lock. ``exclusive_path`` is
    its path when no other process can hold the claim; the file is then removed on release.
    ``is_locked`` is False where the file system has no locks, so that others may hold it too.
    """

    def __init__(
        self,
        descriptor: int | None = None,
        exclusive_path: Path | None = None,
        is_locked: bool = True,
    ):
        self._descriptor = descriptor
        self._exclusive_path = exclusive_path
        self.is_locked = is_locked

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

    def sign(self) -> None:
        """Write this machine and process into the file, for messages of others."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, f"{this_host()} {os.getpid()}\n".encode())

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
    a ``shared`` claim. Every claim is granted where there are no locks, see ``Claim.is_locked``.
    Raises OSError when the file cannot be created.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # another process finished the work and removed the folder just now
        held = Claim(descriptor)
        try:
            is_locked = _lock(descriptor, shared, wait)
        except BlockingIOError:
            held.release()
            return None
        except BaseException:
            held.release()
            raise
        if _is_at(path, descriptor):
            return Claim(descriptor, None if shared else path, is_locked)
        held.release()


def claim_alone(path: Path) -> Claim | None:
    """Claim ``path`` also where there are no locks; None when another process holds the claim.

    The file names its owner, see :func:`owner_of`. Where there are no locks, ``PATH.owner`` is made
    by one process only, and a process that was killed leaves it: it no longer counts when its owner
    was a process of this machine that has ended. Raises OSError when the file cannot be created.
    """
    held = claim(path)
    if held is None:
        return None
    if held.is_locked:
        held.sign()
        return held
    held.release()
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = _owner_file(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    for _ in range(2):
        with contextlib.suppress(FileExistsError):
            held = Claim(os.open(owner, flags, 0o666), owner, is_locked=False)
            held.sign()
            return held
        if not _has_ended(owner):
            return None
        owner.unlink(missing_ok=True)
    return None


def owner_of(path: Path) -> str:
    """Return who holds the claim of :func:`claim_alone`, for messages."""
    for file in (_owner_file(path), path):
        with contextlib.suppress(OSError, ValueError):
            host, pid = file.read_text(encoding="utf-8").split()
            advice = f"; if it has ended, remove {file}" if file != path else ""
            return f"process {int(pid)} on {host!r}{advice}"
    return "another process"


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _has_ended(owner: Path) -> bool:
    """Return whether an owner file names a process of this machine that has ended."""
    try:
        host, pid = owner.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return host == this_host() and pid.isdecimal() and not is_running(int(pid))


def this_host() -> str:
    """Return the name of this machine, without spaces."""
    return "-".join(socket.gethostname().split()) or "unknown"


def _lock(descriptor: int, shared: bool, wait: bool) -> bool:
    """Lock an open file; raise BlockingIOError when another process holds it.

    Returns False where the file system has no locks.
    """
    if fcntl is None:
        return False
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if not wait:
        operation |= fcntl.LOCK_NB
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` is still the locked file.

    Another process may have removed its folder and created it again.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
