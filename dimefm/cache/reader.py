"""Reading a cache: any rows by number, from memory maps."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache.files import commit, companions_sha256, sha256_file, sha256_keys
from dimefm.cache.manifest import Manifest, ShardInfo
from dimefm.errors import CacheError

DAMAGE = (ValueError, OSError, KeyError, RuntimeError, TypeError)  # what h5py, pyarrow and numpy raise on damaged files


class FeatureCache:
    """The vectors of a sealed cache as one array: ``cache[rows]`` -> [n, dim] in the stored dtype.

    Opening reads the manifest only. A shard is mapped when it is first used: directly where the format allows it (HDF5),
    else from a flat copy that is made once under ``scratch`` (default: ``.flat`` inside the cache).

    Raises CacheError when the cache is unfinished, or a shard is missing, cut short or damaged.
    """

    def __init__(self, root: str | Path, scratch: str | Path | None = None):
        self.root = Path(root)
        self.manifest = Manifest.read(self.root)
        self.scratch = Path(scratch) if scratch else self.root / ".flat"
        self.format = plugins.module("caches", self.manifest.format, CacheError)
        counts = (shard.rows for shard in self.manifest.shards)
        self.starts = np.array(list(itertools.accumulate(counts, initial=0)), dtype=np.int64)
        self._maps: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()  # loader threads share one cache

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.manifest.dim

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Return rows by number in any order, repeats allowed: [n, dim], or [dim] for one integer."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        wanted = np.atleast_1d(np.asarray(rows))
        if wanted.size and wanted.dtype.kind not in "iu":
            raise TypeError(f"row numbers are whole numbers, not {wanted.dtype}; of a mask take np.flatnonzero(mask)")
        wanted = wanted.astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            worst = wanted.min() if wanted.min() < 0 else wanted.max()
            raise IndexError(f"{self.root}: row {worst} asked for, the cache has rows 0 to {len(self) - 1}")
        shards = np.searchsorted(self.starts, wanted, side="right") - 1
        found = np.empty((len(wanted), self.dim), dtype=self.manifest.dtype)
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._map(int(shard))[wanted[here] - self.starts[shard]]
        return found[0] if np.ndim(rows) == 0 else found

    def _map(self, number: int) -> np.ndarray:
        """Return shard ``number`` as an array [rows, dim] backed by a file."""
        with self._lock:
            return self._mapped(number)

    def _mapped(self, number: int) -> np.ndarray:
        if number not in self._maps:
            info = self.manifest.shards[number]
            path = self.check_size(info)
            shape = (info.rows, self.dim)
            try:
                mapped = self.format.map(path, shape, self.manifest.dtype)
            except DAMAGE as error:
                raise CacheError(f"{path}: damaged ({error}); remove the cache and extract again") from error
            self._maps[number] = self._flat(info, path, shape) if mapped is None else mapped
        return self._maps[number]

    def _flat(self, info: ShardInfo, path: Path, shape: tuple[int, int]) -> np.ndarray:
        flat = self.scratch / f"{info.file.replace('/', '%2F')}.{info.sha256[:16]}.npy"
        if not flat.exists():
            self._check_sha256(info, path)
            _, rows = self.read(info)
            part = flat.with_name(f"{flat.name}.{os.getpid()}.{id(self)}.part")  # others may make it at once
            try:
                self.scratch.mkdir(parents=True, exist_ok=True)
                with part.open("wb") as file:
                    np.save(file, rows, allow_pickle=False)
                commit(part, flat)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise CacheError(
                    f"{self.scratch}: the flat copy of {info.file} cannot be written ({error.strerror}); "
                    "make the folder writable, or extract with --format hdf5, which needs no copy"
                ) from error
        try:
            mapped = np.load(flat, mmap_mode="r", allow_pickle=False)
        except DAMAGE as error:
            raise CacheError(f"{flat}: damaged ({error}); remove it, it is made anew") from error
        if mapped.shape != shape or mapped.dtype != self.manifest.dtype:
            raise CacheError(f"{flat}: holds {mapped.shape} {mapped.dtype}, expected {shape}; remove it, it is made anew")
        return mapped

    def locate(self, row: int) -> tuple[ShardInfo, int]:
        """Return (shard, number inside it) of a stored row, for messages."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.manifest.shards[shard], row - int(self.starts[shard])

    def read(self, info: ShardInfo) -> tuple[list[str], np.ndarray]:
        """Return (keys, rows) of a whole shard, checked against its record; raise CacheError when they differ."""
        path = self.check_size(info)
        try:
            keys, rows = self.format.read(path, self.manifest.dtype, self.dim)
        except DAMAGE as error:
            raise CacheError(f"{path}: damaged ({error}); remove the cache and extract again") from error
        if rows.shape != (info.rows, self.dim) or sha256_keys(keys) != info.keys_sha256:
            raise CacheError(
                f"{path}: holds {len(keys)} rows of {rows.shape[1:]}, the manifest says {info.rows} of ({self.dim},) with "
                "other keys; restore the shard or extract again"
            )
        return keys, rows

    def check_size(self, info: ShardInfo) -> Path:
        """Return the path of a shard; raise CacheError when it is missing or has another size than recorded."""
        path = self.root / info.file
        if not path.is_file():
            raise CacheError(f"{path}: the shard is missing; restore it, or remove {self.root} and extract again")
        if path.stat().st_size != info.bytes:
            raise CacheError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {info.bytes}; the shard is cut short or was "
                "changed: restore it, or remove the cache and extract again"
            )
        return path

    def verify(self, sha256: bool = False) -> int:
        """Check every shard (size; with ``sha256`` also bytes, keys and finite rows); return how many were checked."""
        for info in self.manifest.shards:
            path = self.check_size(info)
            self._check_companions(info, path, sha256)
            if sha256:
                self._check_sha256(info, path)
                _, rows = self.read(info)
                if not np.isfinite(rows).all():
                    raise CacheError(f"{path}, row {int(np.flatnonzero(~np.isfinite(rows).all(1))[0])}: not finite")
        return len(self.manifest.shards)

    def _check_sha256(self, info: ShardInfo, path: Path) -> None:
        found = sha256_file(path)
        if found != info.sha256:
            raise CacheError(f"{path}: SHA-256 {found[:12]}, the manifest says {info.sha256[:12]}; restore the shard")

    def _check_companions(self, info: ShardInfo, path: Path, sha256: bool) -> None:
        stem = path.name.removesuffix(self.format.SUFFIXES[-1])
        companions = [path.with_name(stem + suffix) for suffix in self.format.SUFFIXES[:-1]]
        missing = [companion for companion in companions if not companion.is_file()]
        if missing or (sha256 and companions_sha256(companions) != info.companions_sha256):
            wrong = f"{missing[0]} is missing" if missing else f"{companions[0]} is not as recorded"
            raise CacheError(f"{wrong}; restore it, or remove the cache and extract again")

    def __getstate__(self):
        return {**self.__dict__, "_maps": {}, "format": None, "_lock": None}

    def __setstate__(self, state):
        module = plugins.module("caches", state["manifest"].format, CacheError)
        self.__dict__.update(state, format=module, _lock=threading.Lock())
