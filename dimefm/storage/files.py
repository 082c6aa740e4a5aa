"""Writing files so that they are either whole or absent, and hashing them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dimefm.runtime.printable import report

CHUNK = 1 << 22  # bytes that are written and hashed at once
# a file of up to SAMPLES * SAMPLE_BYTES = 4 MiB is hashed as a whole, a larger one by samples
SAMPLE_BYTES = 16_384
SAMPLES = 256
PART_NAME = re.compile(r"\.(?P<host>[0-9a-f]{8})\.(?P<pid>[0-9]{1,10})\.[0-9]+\.part$")
ABANDONED_SECONDS = 86_400  # after which a part of another machine is taken for abandoned


def commit(part: Path, final: Path) -> None:
    """Make a finished temporary file durable under its final name.

    The steps: fsync of the file, rename, fsync of the folder.
    """
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Hashed(io.RawIOBase):
    """A new file that a second thread hashes while it is written.

    ``sha256`` and ``size`` are known once it is closed.
    """

    def __init__(self, path: Path):
        super().__init__()
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self.size = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data) -> int:
        """Write all of ``data`` (any contiguous buffer) and return its length in bytes."""
        with memoryview(data) as view, view.cast("B") as raw:
            done = 0
            while done < len(raw):
                # end at a whole chunk of the file, so that large pages can map it later
                room = CHUNK - self.size % CHUNK
                with raw[done : done + room] as part:
                    hashing = self._pool.submit(self._digest.update, part)
                    try:
                        self._write(part)
                    finally:
                        hashing.result()
                    self.size += len(part)
                    done += len(part)
            return len(raw)

    def _write(self, part: memoryview) -> None:
        done = 0
        while done < len(part):
            with part[done:] as rest:
                done += self._file.write(rest) or 0

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self.size

    def close(self) -> None:
        """Close the file; it is not yet durable, see :func:`commit`."""
        if not self.closed:
            self._file.close()
            self._pool.shutdown()
        super().close()

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of what was written."""
        return self._digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically: of several writers, each writes the whole file."""
    part = part_of(path)
    try:
        part.write_bytes(data)
        commit(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_report(path: Path, text: str) -> None:
    """Write a Markdown report, atomically; names from data can be no HTML in it."""
    write_text(path, report(text))


def part_of(path: Path) -> Path:
    """Return where this thread writes ``path`` before it gets its name: nobody else writes there.

    The name has the machine, the process and the thread: processes of two machines may write one
    file where a disk has no locks that hold between them.
    """
    return path.with_name(f"{path.name}.{_host()}.{os.getpid()}.{threading.get_ident()}.part")


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half-written below ``folder``.

    That is the parts of processes of this machine that have ended, and older ones of others.
    """
    beginning = time.time() - ABANDONED_SECONDS
    for place, _, names in os.walk(folder):
        for name in names:
            match = PART_NAME.search(name)
            if match is None:
                continue
            path = Path(place, name)
            is_dead = match["host"] == _host() and not is_running(int(match["pid"]))
            with contextlib.suppress(OSError):
                if is_dead or path.stat().st_mtime < beginning:
                    path.unlink()


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def is_running(pid: int) -> bool:
    """Return whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


@contextlib.contextmanager
def remove_new_dirs_on_error(folder: Path) -> Iterator[None]:
    """On an error, remove ``folder`` and its parents that did not exist before and are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def to_json(value: object) -> str:
    """Return ``value`` as indented JSON with a final newline; equal values give equal bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_sha256(path: Path) -> str:
    """Return a digest that tells a file from another file, without reading all of a large one.

    It is the SHA-256 over the file's size in decimal, a colon, and its bytes; of a file above 4 MiB
    only 256 samples of 16 KiB, evenly spaced from its start to its end.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(b"%d:" % size)
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
            return digest.hexdigest()
        last_start = size - SAMPLE_BYTES
        for number in range(SAMPLES):
            file.seek(last_start * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


class KeyDigest:
    """The digest of keys that come in parts: SHA-256 over ``LENGTH:KEY`` of every key.

    LENGTH is in bytes of UTF-8. ``count`` is the number of keys so far.
    """

    def __init__(self):
        self.count = 0
        self._digest = hashlib.sha256()

    def add(self, keys: Iterable[str]) -> KeyDigest:
        """Add further keys and return this digest."""
        remaining = iter(keys)
        while True:
            some = list(itertools.islice(remaining, 4096))
            if not some:
                return self
            self._digest.update(_prefixed(some))
            self.count += len(some)

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of all keys so far."""
        return self._digest.hexdigest()


def _prefixed(keys: list[str]) -> bytes:
    """Return ``LENGTH:KEY`` of every key, joined; of ASCII keys without a step for each key."""
    text = "".join([f"{len(key)}:{key}" for key in keys])
    if text.isascii():
        return text.encode("ascii")
    encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
    return b"".join([b"%d:%b" % (len(key), key) for key in encoded])


def sha256_keys(keys: Iterable[str]) -> str:
    """Return the :class:`KeyDigest` of a sequence of keys."""
    return KeyDigest().add(keys).sha256


def companions_sha256(digests: Iterable[str]) -> str:
    """Return one digest over the SHA-256 of a shard's companion files, "" when it has none."""
    digests = list(digests)
    if not digests:
        return ""
    return sha256_keys(digests)
