"""Reading a cache: any rows by number, from memory maps."""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from dimefm import plugins
from dimefm.cache.flat import check_flat, flat_copy, flat_path
from dimefm.cache.int8 import AffineQuantizer
from dimefm.cache.manifest import Manifest
from dimefm.cache.shard_info import ShardInfo
from dimefm.errors import CacheError
from dimefm.storage.files import KeyDigest, companions_sha256, sha256_file
from dimefm.storage.stores import open_store

DAMAGE = (
    ValueError,
    OSError,
    KeyError,
    RuntimeError,
    TypeError,
    MemoryError,
)  # what h5py, pyarrow and numpy raise
MMAP_LIMIT = (
    1 << 30
)  # bytes of rows up to which a cache is mapped; of a larger one every row is read by itself
MAPS, FILES = 8192, 256  # shards that are mapped, or open, at once


class ShardHandle:
    """The rows of one shard in a file, mapped (``rows`` [n, dim], ``raw`` their bytes) or read on
    demand.
    """

    def __init__(
        self, path: Path, offset: int, shape: tuple[int, int], dtype: np.dtype, mapped: bool
    ):
        self.path, self.offset, self.width = path, offset, shape[1] * dtype.itemsize
        self.rows, self.raw, self._file = np.empty((0, shape[1]), dtype=dtype), memoryview(b""), -1
        file = os.open(path, os.O_RDONLY)
        closing = weakref.finalize(self, os.close, file)
        size, needed = os.fstat(file).st_size, offset + shape[0] * self.width
        if size < needed:
            raise ValueError(f"{size} bytes, its rows end at byte {needed}")
        if not mapped:
            self._file = file
            return
        if shape[0]:
            self.raw = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))[offset:needed]
            self.rows = np.frombuffer(self.raw, dtype=dtype).reshape(shape)
        closing()

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill ``out`` [n, dim], contiguous, with the rows from ``start`` on; raise CacheError when
        the file ends there.
        """
        if self._file < 0:
            out[:] = self.rows[start : start + len(out)]
            return
        done, wanted = 0, memoryview(out).cast("B")
        while done < len(wanted):
            count = os.preadv(self._file, [wanted[done:]], self.offset + start * self.width + done)
            if not count:
                raise CacheError(
                    f"{self.path}: ends before row {start + len(out)}; it was cut short; restore"
                    " it, or extract again"
                )
            done += count


class FeatureCache:
    """The vectors of a sealed cache as one array: ``cache[rows]`` -> [n, dim]; int8 rows are
    decoded to float32.

    ``root`` is a folder or an fsspec URL. Opening reads the manifest only. A shard is opened when
    it is first used: where it lies if the format allows it (HDF5), else as a flat copy that is made
    once under ``scratch`` (default: ``.flat`` in the cache). Rows of up to RESIDENT bytes are
    memory-mapped; those of a larger cache are read one by one, so that memory does not grow with
    it. Threads may share one; after a fork or unpickling a process opens anew. Raises CacheError
    when the cache is unfinished, or a shard is missing, cut short or damaged.
    """

    def __init__(self, root: str | Path, scratch: str | Path | None = None):
        self.store = open_store(root, scratch)
        self.root = self.store.root
        self.manifest = Manifest.read(self.store)
        self.scratch = Path(scratch) if scratch else self.root / ".flat"
        counts = (shard.rows for shard in self.manifest.shards)
        self.starts = np.array(list(itertools.accumulate(counts, initial=0)), dtype=np.int64)
        self.code = AffineQuantizer.from_fields(self.manifest.code) if self.manifest.code else None
        self._little = np.dtype(self.manifest.dtype).newbyteorder("<")
        self._width = self.dim * self._little.itemsize
        self._mapped = len(self) * self._width <= MMAP_LIMIT
        self._fresh()

    def _fresh(self) -> None:
        self._places: dict[int, ShardHandle] = {}
        self._lock, self._process = threading.Lock(), os.getpid()

    @functools.cached_property
    def format(self) -> ModuleType:
        """The module of the shards' format, imported when a shard is first read as a whole."""
        return plugins.module("caches", self.manifest.format, CacheError)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.manifest.dim

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Return rows by number in any order, repeats allowed: [n, dim], or [dim] for one
        integer.
        """
        found = self.stored(rows)
        return found if self.code is None else self.code.decode(found)

    def stored(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Return rows as they are stored: int8 codes are not decoded."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._range(start, max(start, stop))
            rows = np.arange(start, stop, step)
        wanted = np.atleast_1d(np.asarray(rows))
        if wanted.size and wanted.dtype.kind not in "iu":
            raise TypeError(
                f"row numbers are whole numbers, not {wanted.dtype}; of a mask take"
                " np.flatnonzero(mask)"
            )
        found = self._gather(wanted.astype(np.int64, copy=False))
        return found[0] if np.ndim(rows) == 0 else found

    def _range(self, start: int, stop: int) -> np.ndarray:
        pieces = []
        for shard in range(
            int(np.searchsorted(self.starts, start, side="right")) - 1, len(self.starts) - 1
        ):
            low, high = (int(edge) for edge in self.starts[shard : shard + 2])
            if low >= stop:
                break
            if max(start, low) < min(stop, high):
                pieces.append((shard, low, max(start, low), min(stop, high)))
        for shard, *_ in pieces:  # before memory is asked for what the manifest promises
            if shard not in self._places:
                self.check_size(self.manifest.shards[shard])
        found = np.empty((stop - start, self.dim), dtype=self._little)
        for shard, low, a, b in pieces:
            self._place(shard).read(a - low, found[a - start : b - start])
        return found.astype(self.manifest.dtype, copy=False)

    def _gather(self, wanted: np.ndarray) -> np.ndarray:
        if not len(wanted):
            return np.empty((0, self.dim), dtype=self.manifest.dtype)
        low, high = int(wanted.min()), int(wanted.max())
        if low < 0 or high >= len(self):
            worst = low if low < 0 else high
            raise IndexError(
                f"{self.store}: row {worst} asked for, the cache has rows 0 to {len(self) - 1}"
            )
        shards = np.searchsorted(self.starts, wanted, side="right") - 1
        if self._mapped and len(set(shards.tolist())) == 1:
            found = np.take(
                self._place(int(shards[0])).rows, wanted - self.starts[shards[0]], axis=0
            )
        elif self._mapped:
            raw, width = (
                {shard: self._place(shard).raw for shard in set(shards.tolist())},
                self._width,
            )
            local = ((wanted - self.starts[shards]) * width).tolist()
            picked = [
                raw[shard][at : at + width]
                for shard, at in zip(shards.tolist(), local, strict=True)
            ]
            found = np.frombuffer(bytearray().join(picked), dtype=self._little).reshape(
                len(wanted), self.dim
            )
        else:
            found = np.empty((len(wanted), self.dim), dtype=self._little)
            for i in np.argsort(
                wanted
            ).tolist():  # shard after shard: no more of them are open than FILES
                shard = int(shards[i])
                self._place(shard).read(int(wanted[i] - self.starts[shard]), found[i : i + 1])
        return found.astype(self.manifest.dtype, copy=False)

    def _place(self, number: int) -> ShardHandle:
        """Return where the rows of shard ``number`` lie, opened when it is first used."""
        if self._process != os.getpid():
            self._fresh()
        place = self._places.get(number)
        if place is None:
            with self._lock:
                place = self._places.get(number)
                if place is None:
                    if len(self._places) >= (MAPS if self._mapped else FILES):
                        self._places.clear()
                    place = self._places[number] = self._open(number)
        return place

    def _open(self, number: int) -> ShardHandle:
        info = self.manifest.shards[number]
        path, offset = self.check_size(info), info.offset
        if offset is None and info.rows:
            path, offset = flat_copy(self, info), 0
        try:
            return ShardHandle(path, offset or 0, (info.rows, self.dim), self._little, self._mapped)
        except (ValueError, OSError) as error:
            raise CacheError(f"{path}: damaged ({error}); remove it, or extract again") from error

    def locate(self, row: int) -> tuple[ShardInfo, int]:
        """Return (shard, number inside it) of a stored row, for messages."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.manifest.shards[shard], row - int(self.starts[shard])

    def blocks(self, info: ShardInfo) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (keys, stored rows) of a shard in blocks; raise CacheError when it is not what its
        record says.
        """
        path, keys = self.check_size(info), KeyDigest()
        self.check_companions(info)
        for name in self.companions(info):
            self.store.local(name)
        try:
            for part, rows in self.format.blocks(path, (info.rows, self.dim), self.manifest.dtype):
                if len(part) != len(rows):
                    raise ValueError(f"{len(part)} keys for {len(rows)} rows")
                keys.add(part)
                yield part, rows
        except DAMAGE as error:
            raise CacheError(
                f"{self.store.where(info.file)}: damaged ({error}); restore it, or remove the cache"
                " and extract again"
            ) from error
        if (keys.count, keys.sha256) != (info.rows, info.keys_sha256):
            raise CacheError(
                f"{self.store.where(info.file)}: holds {keys.count} rows with keys"
                f" {keys.sha256[:12]}, the manifest says {info.rows} with {info.keys_sha256[:12]};"
                " restore the shard or extract again"
            )

    def read(self, info: ShardInfo) -> tuple[list[str], np.ndarray]:
        """Return (keys, stored rows) of a whole shard, checked against its record; raise CacheError
        when they differ.
        """
        parts = list(self.blocks(info))
        empty = np.empty((0, self.dim), dtype=self.manifest.dtype)
        return [key for keys, _ in parts for key in keys], np.concatenate(
            [empty, *(rows for _, rows in parts)]
        )

    def check_size(self, info: ShardInfo) -> Path:
        """Return a local path of a shard; raise CacheError when it is missing or has another size
        than recorded.
        """
        where, size = self.store.where(info.file), self.store.size(info.file)
        if size is None:
            raise CacheError(
                f"{where}: the shard is missing; restore it, or remove {self.store} and extract"
                " again"
            )
        if size != info.bytes:
            raise CacheError(
                f"{where}: {size} bytes, the manifest says {info.bytes}; the shard is cut short or"
                " was changed: restore it, or remove the cache and extract again"
            )
        return self.store.local(info.file)

    def check_sha256(self, info: ShardInfo) -> None:
        """Raise CacheError when the bytes of a shard or of its companions are not those
        recorded.
        """
        path = self.check_size(info)
        found = sha256_file(path)
        if found != info.sha256:
            raise CacheError(
                f"{self.store.where(info.file)}: SHA-256 {found[:12]}, the manifest says"
                f" {info.sha256[:12]}; restore the shard"
            )
        self.check_companions(info)
        names = self.companions(info)
        if (
            companions_sha256(sha256_file(self.store.local(name)) for name in names)
            != info.companions_sha256
        ):
            raise CacheError(
                f"{self.store.where((names or [info.file])[0])} is not as recorded; restore it, or"
                " remove the cache and extract again"
            )

    def verify(self, sha256: bool = False) -> int:
        """Check every shard and return how many there are: its size; with ``sha256`` also bytes,
        keys, finite rows, and that the rows that are mapped are the rows that the format reads.
        Raises CacheError naming file and row.
        """
        for number, info in enumerate(self.manifest.shards):
            self.check_size(info)
            self.check_companions(info)
            if sha256:
                self.check_sha256(info)
                check_flat(self, info)
                self._check_rows(number, info)
        return len(self.manifest.shards)

    def _check_rows(self, number: int, info: ShardInfo) -> None:
        start, where = 0, self.store.where(info.file)
        for _, rows in self.blocks(info):
            if not np.isfinite(rows).all():
                row = start + int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
                raise CacheError(f"{where}, row {row}: not finite; extract the shard again")
            if info.offset is not None or flat_path(self, info).exists():
                first = int(self.starts[number]) + start
                if self.stored(slice(first, first + len(rows))).tobytes() != rows.tobytes():
                    place = (
                        f"at byte {info.offset}"
                        if info.offset is not None
                        else f"of {flat_path(self, info)}"
                    )
                    raise CacheError(
                        f"{where}: the rows {place} are not those of the shard; extract it again"
                    )
            start += len(rows)

    def check_companions(self, info: ShardInfo) -> None:
        """Raise CacheError when a companion file of a shard is missing."""
        for name in self.companions(info):
            if self.store.size(name) is None:
                raise CacheError(
                    f"{self.store.where(name)} is missing; restore it, or remove the cache and"
                    " extract again"
                )

    def companions(self, info: ShardInfo) -> list[str]:
        """Return the names of a shard's companion files."""
        suffixes = self.format.SUFFIXES
        return [info.file.removesuffix(suffixes[-1]) + suffix for suffix in suffixes[:-1]]

    def __getstate__(self):
        dropped = {"_places", "_lock", "_process", "format"}
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._fresh()
