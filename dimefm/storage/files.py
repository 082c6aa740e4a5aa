"""Writing files so that they are either whole or absent, and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def commit(part: Path, final: Path) -> None:
    """Make a finished temporary file durable under its final name: fsync file, rename, fsync
    folder.
    """
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


CHUNK = 1 << 22  # bytes that are written and hashed at once


class Hashed(io.RawIOBase):
    """A new file that a second thread hashes while it is written; ``sha256`` and ``size`` are known
    once it is closed.
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
                end = (
                    done + CHUNK - self.size % CHUNK
                )  # whole pages of the file, so that large ones can map it later
                with raw[done:end] as part:
                    hashing = self._pool.submit(self._digest.update, part)
                    try:
                        self._write(part)
                    finally:
                        hashing.result()
                    self.size, done = self.size + len(part), done + len(part)
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
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    commit(part, path)


@contextlib.contextmanager
def remove_new_dirs_on_error(folder: Path) -> Iterator[None]:
    """On an error, remove ``folder`` and those around it that were not there before, as far as they
    are empty.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def to_json(value: object) -> str:
    """Return ``value`` as indented JSON that ends in a newline; the same value gives the same
    bytes.
    """
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


BLOCK, BLOCKS = 16_384, 256  # a file of up to BLOCK * BLOCKS = 4 MiB is read whole


def sampled_sha256(path: Path) -> str:
    """Return a digest that tells a file from another or an edited one without reading terabytes.

    SHA-256 over its size in decimal, a colon, and its bytes; of a file above 4 MiB only 256 blocks
    of 16 KiB, evenly spaced from its start to its end.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(b"%d:" % size)
    with path.open("rb") as file:
        if size <= BLOCK * BLOCKS:
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


class KeyDigest:
    """The digest of keys that come in portions: SHA-256 over ``LENGTH:KEY`` of each, LENGTH in
    bytes of UTF-8.
    """

    def __init__(self):
        self.count, self._digest = 0, hashlib.sha256()

    def add(self, keys: Iterable[str]) -> KeyDigest:
        """Take up further keys."""
        keys = iter(keys)
        while some := [
            key.encode("utf-8", "surrogatepass") for key in itertools.islice(keys, 4096)
        ]:
            self._digest.update(b"".join([b"%d:%b" % (len(key), key) for key in some]))
            self.count += len(some)
        return self

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of all keys so far."""
        return self._digest.hexdigest()


def sha256_keys(keys: Iterable[str]) -> str:
    """Return the :class:`KeyDigest` of a sequence of keys."""
    return KeyDigest().add(keys).sha256


def companions_sha256(digests: Iterable[str]) -> str:
    """Return one digest over the SHA-256 of each companion file of a shard, "" when there is
    none.
    """
    digests = list(digests)
    return sha256_keys(digests) if digests else ""
