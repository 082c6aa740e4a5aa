"""Flat copies: the rows of a shard whose format has no random access, as one little-endian array in
a file of its own.

``NAME.SHA.flat`` holds nothing but the rows; ``NAME.SHA.flat.sha256`` beside it seals it and is
written last. The name carries the digest of the shard, so the copy of another shard is never taken
for it. Copies can be removed at any time.
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
from dimefm.cache.shard_info import ShardInfo
from dimefm.errors import CacheError
from dimefm.storage.files import Hashed, commit, sha256_file
from dimefm.storage.locks import Claim, claim


class CheckedShards(Protocol):
    """What a flat copy is made from: the shards of an opened cache, as ``FeatureCache`` reads
    them.
    """

    manifest: Manifest
    scratch: Path

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def check_sha256(self, info: ShardInfo) -> None:
        """Raise CacheError when the bytes of a shard are not those recorded."""

    def blocks(self, info: ShardInfo) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (keys, stored rows) of a shard in blocks."""


def flat_path(cache: CheckedShards, info: ShardInfo) -> Path:
    """Return where the flat copy of a shard lies, whether it is there or not."""
    return cache.scratch / f"{info.file.replace('/', '%2F')}.{info.sha256[:16]}.flat"


def flat_copy(cache: CheckedShards, info: ShardInfo) -> Path:
    """Return the flat copy of a shard, made from the whole and checked shard when there is none.

    Raises CacheError when the shard is damaged, or the copy has another size or cannot be written.
    """
    path = flat_path(cache, info)
    size = info.rows * cache.dim * cache.manifest.itemsize
    if not _seal(path).exists():
        cache.check_sha256(info)
        _make(cache, info, path)
    found = path.stat().st_size if path.exists() else None
    if found != size:
        raise CacheError(
            f"{path}: {found} bytes, expected {size}; remove {path.name} and its .sha256, it is"
            " made anew"
        )
    return path


def check_flat(cache: CheckedShards, info: ShardInfo) -> None:
    """Raise CacheError when a flat copy is there and its bytes are not those of its seal."""
    path = flat_path(cache, info)
    if _seal(path).exists() and (
        not path.exists() or sha256_file(path) != _seal(path).read_text("utf-8").split()[0]
    ):
        raise CacheError(
            f"{path}: not as its seal says; remove {path.name} and its .sha256, it is made anew"
        )


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _make(cache: CheckedShards, info: ShardInfo, path: Path) -> None:
    """Make a flat copy; of processes that want the same one, the first makes it where files can be
    locked.
    """
    try:
        with claim(path.with_name(path.name + ".making"), wait=True) or Claim():
            if not _seal(path).exists():
                _write(cache, info, path)
    except OSError as error:
        raise CacheError(
            f"{cache.scratch}: the flat copy of {info.file} cannot be written ({error.strerror});"
            " make room or the folder writable, name another folder with --scratch, or dimefm"
            " cache convert --format hdf5, which needs no copy"
        ) from error


def _write(cache: CheckedShards, info: ShardInfo, path: Path) -> None:
    here = f"{path.name}.{socket.gethostname()}."
    part = path.with_name(
        f"{here}{os.getpid()}.{threading.get_ident()}.part"
    )  # without locks others may make it at once
    little = np.dtype(cache.manifest.dtype).newbyteorder("<")
    _remove_dead(path, here)
    try:
        with Hashed(part) as file:
            for _, rows in cache.blocks(info):
                file.write(np.ascontiguousarray(rows, dtype=little))
        commit(part, path)
        part.write_text(f"{file.sha256}  {path.name}\n", encoding="utf-8")
        commit(part, _seal(path))
    finally:
        part.unlink(missing_ok=True)


def _remove_dead(path: Path, here: str) -> None:
    """Remove unfinished copies of processes of this machine that are no more."""
    for part in path.parent.glob(f"{glob.escape(here)}*.part"):
        with contextlib.suppress(ValueError, OSError):
            pid = int(part.name.removeprefix(here).split(".")[0])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                part.unlink(missing_ok=True)
