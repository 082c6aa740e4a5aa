"""Flat copies of shards whose format has no random access: one little-endian array in a file.

``NAME.SHA.flat`` holds nothing but the rows. ``NAME.SHA.flat.sha256`` in the same folder is its
seal and is written last. The name contains the digest of the shard, so the copy of another shard is
never mistaken for it. Copies can be removed at any time.
"""

from __future__ import annotations

import contextlib
import glob
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from dimefm.cache.manifest import Manifest
from dimefm.cache.plan import flat_name
from dimefm.cache.shard_info import ShardInfo
from dimefm.errors import CacheError
from dimefm.storage.files import Hashed, commit, sha256_file
from dimefm.storage.locks import Claim, claim


class CheckedShards(Protocol):
    """What a flat copy is made from: an opened cache, as ``FeatureCache`` has it."""

    manifest: Manifest
    scratch: Path

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def check_sha256(self, info: ShardInfo) -> None:
        """Raise CacheError when the bytes of a shard are not as recorded."""

    def blocks(self, info: ShardInfo) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (keys, stored rows) of a shard in blocks."""


def flat_path(cache: CheckedShards, info: ShardInfo) -> Path:
    """Return the path of the flat copy of a shard, whether it exists or not."""
    return cache.scratch / f"{flat_name(info.file)}.{info.sha256[:16]}.flat"


def flat_copy(cache: CheckedShards, info: ShardInfo) -> Path:
    """Return the flat copy of a shard; without one, make it from the whole and checked shard.

    Raises CacheError when the shard is damaged, or the copy has another size or cannot be written.
    """
    path = flat_path(cache, info)
    if _seal(path).exists():
        _remove_abandoned_lock(path)
    else:
        cache.check_sha256(info)
        _make(cache, info, path)
    expected = info.rows * cache.dim * cache.manifest.itemsize
    size = path.stat().st_size if path.exists() else None
    if size != expected:
        raise CacheError(
            f"{path}: {size} bytes, expected {expected}. Fix: remove {path.name} and its .sha256,"
            " it is made again"
        )
    return path


def check_flat(cache: CheckedShards, info: ShardInfo) -> None:
    """Raise CacheError when a flat copy exists and its bytes are not as its seal says."""
    path = flat_path(cache, info)
    seal = _seal(path)
    if not seal.exists():
        return
    sealed = seal.read_bytes().split()[:1]
    if path.exists() and [sha256_file(path).encode()] == sealed:
        return
    raise CacheError(
        f"{path}: not as its seal says. Fix: remove {path.name} and its .sha256, it is made again"
    )


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".making")


def _make(cache: CheckedShards, info: ShardInfo, path: Path) -> None:
    """Make a flat copy; where files can be locked, only the first of several processes makes it."""
    try:
        with claim(_lock(path), wait=True) or Claim():
            if not _seal(path).exists():
                _write(cache, info, path)
    except OSError as error:
        raise CacheError(
            f"{cache.scratch}: the flat copy of {info.file} cannot be written ({error.strerror})."
            " Fix: make room or the folder writable, name another folder with --scratch, or dimefm"
            " cache convert --format hdf5, which needs no copy"
        ) from error


def _write(cache: CheckedShards, info: ShardInfo, path: Path) -> None:
    # without locks several threads and processes may make the copy at the same time
    prefix = f"{path.name}.{socket.gethostname()}."
    part = path.with_name(f"{prefix}{os.getpid()}.{threading.get_ident()}.part")
    little = np.dtype(cache.manifest.dtype).newbyteorder("<")
    _remove_abandoned(path, prefix)
    try:
        with Hashed(part) as file:
            for _, rows in cache.blocks(info):
                file.write(np.ascontiguousarray(rows, dtype=little))
        commit(part, path)
        part.write_text(f"{file.sha256}  {path.name}\n", encoding="utf-8")
        commit(part, _seal(path))
    finally:
        part.unlink(missing_ok=True)


def _remove_abandoned_lock(path: Path) -> None:
    """Remove the lock file of a process that was killed when its copy was whole already."""
    if not _lock(path).exists():
        return
    with contextlib.suppress(OSError):
        lock = claim(_lock(path))
        if lock is not None:
            lock.release()


def _remove_abandoned(path: Path, prefix: str) -> None:
    """Remove unfinished copies of processes of this machine that have ended."""
    for part in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        with contextlib.suppress(ValueError, OSError):
            process_id, _, _ = part.name.removeprefix(prefix).partition(".")
            pid = int(process_id)
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                part.unlink(missing_ok=True)
