"""Reading a cache: any rows by number, and whole shards in blocks."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dimefm import plugins
from dimefm.cache.flat import check_flat, flat_copy, flat_path
from dimefm.cache.int8 import AffineQuantizer
from dimefm.cache.manifest import Manifest
from dimefm.cache.shard_info import ShardInfo
from dimefm.cache.shard_rows import MappedRows, PreadRows, ShardHandle
from dimefm.errors import CacheError
from dimefm.storage import open_files
from dimefm.storage.files import KeyDigest, companions_sha256, sha256_file
from dimefm.storage.reading import is_row_fault, lacks_memory, remedy_of
from dimefm.storage.stores import open_store

# what h5py, pyarrow and numpy raise for a damaged file
DAMAGE = (ValueError, OSError, LookupError, RuntimeError, TypeError)
FEW_OPEN = 16  # shards that any process may hold open
MMAP_LIMIT = 1 << 30  # bytes of rows up to which a cache is memory-mapped


class RowRange(NamedTuple):
    """Consecutive rows of one shard: ``start`` to ``stop``, counted over the whole cache."""

    shard: int
    start: int
    stop: int


class FeatureCache:
    """The vectors of a sealed cache as one array: ``cache[rows]`` -> [n, dim].

    int8 rows are decoded to float32. ``root`` is a folder or an fsspec URL. Opening reads the
    manifest only. A shard is opened when it is first used: where it lies if the format allows it
    (HDF5), else as a flat copy that is made once under ``scratch`` (default: ``.flat`` in the
    cache), and compared with the manifest. A cache of at most MMAP_LIMIT bytes of rows is hashed as
    a whole and memory-mapped; the rows of a larger one are read one by one, so that memory does not
    grow with it, and only its keys are compared. Threads may share one; after a fork or unpickling
    a process opens the shards again. Raises CacheError when the cache is unfinished, or a shard is
    missing, cut short, exchanged or damaged.
    """

    def __init__(self, root: str | Path, scratch: str | Path | None = None):
        self.store = open_store(root, scratch)
        self.root = self.store.root
        self.manifest = Manifest.read(self.store)
        self.scratch = Path(scratch) if scratch else self.root / ".flat"
        row_counts = [shard.rows for shard in self.manifest.shards]
        self.starts = np.array(list(itertools.accumulate(row_counts, initial=0)), dtype=np.int64)
        self.code = None
        if self.manifest.code:
            self.code = AffineQuantizer.from_fields(self.manifest.code)
        self._little = np.dtype(self.manifest.dtype).newbyteorder("<")
        row_bytes = self.dim * self._little.itemsize
        self._rows: MappedRows | PreadRows
        if len(self) * row_bytes <= MMAP_LIMIT:
            self._rows = MappedRows(self.dim, self._little)
        else:
            self._rows = PreadRows(self.dim, self._little)
        self._checked: set[int] = set()  # shards that were compared with the manifest
        self._forget_open_shards()

    def _forget_open_shards(self) -> None:
        self._open_shards: dict[int, ShardHandle] = {}
        self._open_limit: int | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

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
        """Return rows by number in any order, repeats allowed: [n, dim], or [dim] of an integer."""
        stored = self.stored(rows)
        return stored if self.code is None else self.code.decode(stored)

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
        gathered = self._gather(wanted.astype(np.int64, copy=False))
        return gathered[0] if np.ndim(rows) == 0 else gathered

    def _range(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from ``start`` to ``stop``."""
        pieces = self._pieces(start, stop)
        for piece in pieces:  # before memory is asked for what the manifest promises
            if piece.shard not in self._open_shards:
                self.check_size(self.manifest.shards[piece.shard])
        rows = np.empty((stop - start, self.dim), dtype=self._little)
        for piece in pieces:
            first_of_shard = int(self.starts[piece.shard])
            out = rows[piece.start - start : piece.stop - start]
            self._shard(piece.shard).read(piece.start - first_of_shard, out)
        return rows.astype(self.manifest.dtype, copy=False)

    def _pieces(self, start: int, stop: int) -> list[RowRange]:
        """Return the parts of the rows from ``start`` to ``stop`` that lie in one shard each."""
        pieces = []
        first_shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        for shard in range(first_shard, len(self.manifest.shards)):
            shard_start = int(self.starts[shard])
            shard_stop = int(self.starts[shard + 1])
            if shard_start >= stop:
                break
            piece = RowRange(shard, max(start, shard_start), min(stop, shard_stop))
            if piece.start < piece.stop:
                pieces.append(piece)
        return pieces

    def _gather(self, wanted: np.ndarray) -> np.ndarray:
        """Return the ``wanted`` rows [n], in this order."""
        if not len(wanted):
            return np.empty((0, self.dim), dtype=self.manifest.dtype)
        lowest = int(wanted.min())
        highest = int(wanted.max())
        if lowest < 0 or highest >= len(self):
            outside = lowest if lowest < 0 else highest
            raise IndexError(
                f"{self.store}: row {outside} asked for, the cache has rows 0 to {len(self) - 1}"
            )
        shards = np.searchsorted(self.starts, wanted, side="right") - 1
        local = wanted - self.starts[shards]
        rows = self._rows.gather(self._shard, shards, local)
        return rows.astype(self.manifest.dtype, copy=False)

    def _shard(self, number: int) -> Any:
        """Return shard ``number``, a handle of the backend, opened when it is first used."""
        if self._process != os.getpid():
            self._forget_open_shards()
        shard = self._open_shards.get(number)
        if shard is not None:
            return shard
        with self._lock:
            shard = self._open_shards.get(number)
            if shard is None:
                if len(self._open_shards) >= self._most_open():
                    self._open_shards.clear()
                shard = self._open(number)
                self._open_shards[number] = shard
        return shard

    def _most_open(self) -> int:
        """Return how many shards may be open at once."""
        few = min(FEW_OPEN, self._rows.most_open)
        if len(self._open_shards) < few:
            return few
        if self._open_limit is None:
            self._open_limit = max(few, open_files.share(self._rows.most_open))
        return self._open_limit

    def _open(self, number: int) -> ShardHandle:
        info = self.manifest.shards[number]
        path = self.check_size(info)
        offset = info.offset
        if offset is None:
            offset = 0
            if info.rows:
                path = flat_copy(self, info)
        if number not in self._checked:
            self._check_content(info, path)
            self._checked.add(number)
        try:
            return self._rows.handle(path, offset, (info.rows, self.dim), self._little)
        except (ValueError, OSError) as error:
            raise _unreadable(path, error, "remove it, or extract again") from error

    def _check_content(self, info: ShardInfo, path: Path) -> None:
        """Raise CacheError when a shard was exchanged or changed since it was written.

        The shards of a mapped cache are hashed. A larger cache would be read as a whole for that,
        so only its keys are compared with the manifest.
        """
        is_hashed = isinstance(self._rows, MappedRows)
        if info.offset is None:
            if is_hashed:
                check_flat(self, info)
            return
        if is_hashed and sha256_file(path) == info.sha256:
            return
        for _ in self.key_blocks(info):
            pass  # they are compared when the last block is read
        if is_hashed:
            self._refuse_useless_rows(info)
            raise CacheError(
                f"{self.store.where(info.file)}: other bytes than the manifest records; the shard"
                " was changed after it was written. Fix: restore it, or extract again"
            )

    def _refuse_useless_rows(self, info: ShardInfo) -> None:
        """Raise CacheError, naming the row, for one that is not finite or has length 0."""
        start = 0
        for _, rows in self.blocks(info):
            with np.errstate(over="ignore"):
                lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
            wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
            if self.code is None and len(wrong):
                first = int(wrong[0])
                raise CacheError(
                    f"{self.store.where(info.file)}, row {start + first}: the vector has length"
                    f" {lengths[first]}. Fix: restore the shard, or extract again"
                )
            start += len(rows)

    @contextlib.contextmanager
    def _read_errors(self, info: ShardInfo) -> Iterator[None]:
        """Turn what a library raises for a shard into a CacheError; a lack of memory is none."""
        try:
            yield
        except DAMAGE as error:
            if lacks_memory(error):
                raise
            remedy = "restore it, or remove the cache and extract again"
            raise _unreadable(self.store.where(info.file), error, remedy) from error

    def _refuse_other_keys(self, info: ShardInfo, digest: KeyDigest) -> None:
        """Raise CacheError when the keys of a shard are not those that the manifest records."""
        if (digest.count, digest.sha256) != (info.rows, info.keys_sha256):
            raise CacheError(
                f"{self.store.where(info.file)}: holds {digest.count} rows with keys"
                f" {digest.sha256[:12]}, the manifest says {info.rows} with"
                f" {info.keys_sha256[:12]}. Fix: restore the shard or extract again"
            )

    def locate(self, row: int) -> tuple[ShardInfo, int]:
        """Return (shard, number inside it) of a stored row, for messages."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.manifest.shards[shard], row - int(self.starts[shard])

    def blocks(self, info: ShardInfo) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (keys, stored rows) of a shard in blocks.

        Raises CacheError when the shard is not what its record says.
        """
        path = self.check_size(info)
        digest = KeyDigest()
        self.check_companions(info)
        for name in self.companions(info):
            self.store.local(name)
        shape = (info.rows, self.dim)
        with self._read_errors(info):
            for keys, rows in self.format.blocks(path, shape, self.manifest.dtype):
                if len(keys) != len(rows):
                    raise ValueError(f"{len(keys)} keys for {len(rows)} rows")
                digest.add(keys)
                yield keys, rows
        self._refuse_other_keys(info, digest)

    def key_blocks(self, info: ShardInfo) -> Iterator[list[str]]:
        """Yield the keys of a shard in blocks, without its rows where the format can do that.

        Raises CacheError when the shard is not what its record says.
        """
        if not hasattr(self.format, "keys"):
            for keys, _ in self.blocks(info):
                yield keys
            return
        path = self.check_size(info)
        digest = KeyDigest()
        with self._read_errors(info):
            for keys in self.format.keys(path, info.rows):
                digest.add(keys)
                yield keys
        self._refuse_other_keys(info, digest)

    def keys(self, rows: int | slice | Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Return the keys of rows by number, in this order; without ``rows`` those of all rows.

        The keys of all shards that hold the rows are read, see :meth:`key_blocks`. Raises
        IndexError for a row that is not there.
        """
        numbers = np.arange(len(self))
        if rows is not None:
            numbers = np.atleast_1d(numbers[rows])
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        by_shard = np.argsort(shards, kind="stable")
        keys = [""] * len(numbers)
        shard_keys: list[str] = []
        opened = -1
        for place in by_shard.tolist():
            shard = int(shards[place])
            if shard != opened:
                shard_keys = self._shard_keys(shard)
                opened = shard
            keys[place] = shard_keys[int(numbers[place] - self.starts[shard])]
        return keys

    def _shard_keys(self, shard: int) -> list[str]:
        keys: list[str] = []
        for block_keys in self.key_blocks(self.manifest.shards[shard]):
            keys += block_keys
        return keys

    def read(self, info: ShardInfo) -> tuple[list[str], np.ndarray]:
        """Return (keys, stored rows) of a whole shard.

        Raises CacheError when the shard is not what its record says.
        """
        all_keys: list[str] = []
        parts = [np.empty((0, self.dim), dtype=self.manifest.dtype)]
        for keys, rows in self.blocks(info):
            all_keys += keys
            parts.append(rows)
        return all_keys, np.concatenate(parts)

    def check_size(self, info: ShardInfo) -> Path:
        """Return a local path of a shard.

        Raises CacheError when the shard is missing or has another size than recorded.
        """
        where = self.store.where(info.file)
        size = self.store.size(info.file)
        if size is None:
            raise CacheError(
                f"{where}: the shard is missing. Fix: restore it, or remove {self.store} and"
                " extract again"
            )
        if size != info.bytes:
            raise CacheError(
                f"{where}: {size} bytes, the manifest says {info.bytes}; the shard is cut short or"
                " was changed. Fix: restore it, or remove the cache and extract again"
            )
        return self.store.local(info.file)

    def check_sha256(self, info: ShardInfo) -> None:
        """Raise CacheError when the bytes of a shard or its companions are not as recorded."""
        path = self.check_size(info)
        digest = sha256_file(path)
        if digest != info.sha256:
            raise CacheError(
                f"{self.store.where(info.file)}: SHA-256 {digest[:12]}, the manifest says"
                f" {info.sha256[:12]}. Fix: restore the shard"
            )
        self.check_companions(info)
        names = self.companions(info)
        digests = [sha256_file(self.store.local(name)) for name in names]
        if companions_sha256(digests) != info.companions_sha256:
            first_file = names[0] if names else info.file
            raise CacheError(
                f"{self.store.where(first_file)} is not as recorded. Fix: restore it, or remove the"
                " cache and extract again"
            )

    def verify(self, sha256: bool = False) -> int:
        """Check the size of every shard and return how many shards there are.

        With ``sha256`` bytes, keys and rows are checked too: that all numbers are finite, and that
        the rows that are mapped are the rows that the format reads. Raises CacheError naming file
        and row.
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
        where = self.store.where(info.file)
        has_array = info.offset is not None
        is_read_by_number = has_array or flat_path(self, info).exists()
        if is_read_by_number:
            self._checked.add(number)  # its bytes have been compared just now
        start = 0
        for _, rows in self.blocks(info):
            finite = np.isfinite(rows)
            if not finite.all():
                row = start + int(np.flatnonzero(~finite.all(1))[0])
                raise CacheError(f"{where}, row {row}: not finite. Fix: extract the shard again")
            if is_read_by_number:
                first = int(self.starts[number]) + start
                by_number = self.stored(slice(first, first + len(rows)))
                if by_number.tobytes() != rows.tobytes():
                    place = f"of {flat_path(self, info)}"
                    if has_array:
                        place = f"at byte {info.offset}"
                    raise CacheError(
                        f"{where}: the rows {place} are not those of the shard. Fix: extract it"
                        " again"
                    )
            start += len(rows)

    def check_companions(self, info: ShardInfo) -> None:
        """Raise CacheError when a companion file of a shard is missing."""
        for name in self.companions(info):
            if self.store.size(name) is None:
                raise CacheError(
                    f"{self.store.where(name)} is missing. Fix: restore it, or remove the cache and"
                    " extract again"
                )

    def companions(self, info: ShardInfo) -> list[str]:
        """Return the names of a shard's companion files."""
        suffixes = self.format.SUFFIXES
        stem = info.file.removesuffix(suffixes[-1])
        return [stem + suffix for suffix in suffixes[:-1]]

    def __getstate__(self):
        state = dict(self.__dict__)
        for name in ("_open_shards", "_open_limit", "_lock", "_process", "format"):
            state.pop(name, None)
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget_open_shards()


def _unreadable(where: str | Path, error: Exception, remedy: str) -> CacheError:
    """Return the error for a file that a library could not read.

    The file is damaged, and ``remedy`` says what to do, unless the machine failed.
    """
    if isinstance(error, OSError) and not is_row_fault(error):
        reason = error.strerror or " ".join(str(error).split())
        return CacheError(
            f"{where}: cannot be read ({reason}). Fix: {remedy_of(error)}, and run the same"
            " command again"
        )
    return CacheError(f"{where}: damaged ({error}). Fix: {remedy}")
