"""Finding the neighbours of every row of a cache, once, and writing them to a folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.cache.manifest import differences
from dimefm.curate.neighbours.graph import (
    COSINES,
    FILE,
    IDS,
    KEYS,
    VERSION,
    Neighbours,
    Rule,
)
from dimefm.curate.neighbours.search import Searcher, SearchResult, import_faiss
from dimefm.data.views.patch_tokens import expect_rows
from dimefm.errors import CacheError
from dimefm.runtime.os_errors import FULL
from dimefm.runtime.progress import Progress
from dimefm.runtime.versions import libraries
from dimefm.storage.files import Hashed, remove_abandoned, to_json
from dimefm.storage.out_folder import refuse_foreign
from dimefm.storage.stores import Store, open_store

NEAR = (0.9999, 0.999, 0.99, 0.95, 0.9, 0.8)  # cosines above which the nearest rows are counted
CLAIM = ".neighbours.lock"


def build(
    cache: FeatureCache,
    out: str | Path,
    rule: Rule | None = None,
    scratch: str | Path | None = None,
    quiet: bool = True,
) -> Neighbours:
    """Find the neighbours of each row of ``cache``, write them to ``out`` and return them, opened.

    ``out`` is a folder or URL. Neighbours that are in it already, by the same rule, are returned as
    they are. ``neighbours.json`` is written last; until then there are no neighbours, and the same
    call starts from the beginning. Memory is the index, 4 bytes x rows x dimensions, and blocks of
    rows. Raises CacheError when ``out`` holds other neighbours, another process writes there, or
    the cache is damaged, has one row only or holds tokens.
    """
    expect_rows([cache])
    rule = rule or Rule()
    store = open_store(out, scratch)
    fields = rule.fields(len(cache))
    if store.read(FILE) is not None:
        existing = Neighbours(out, scratch)
        _check_same(existing, cache, fields)
        _remove_leftovers(store)
        return existing
    if len(cache) < 2:
        raise CacheError(
            f"{cache.store}: {len(cache)} rows; neighbours need two at least. Fix: name a larger"
            " cache"
        )
    refuse_foreign(out, "neighbours", [FILE, CLAIM, "ids.npy*", "keys.jsonl*"])
    claim = store.claim(CLAIM)
    if claim is None:
        raise CacheError(
            f"{out}: another process writes neighbours there. Fix: wait for it, or give another"
            " folder"
        )
    try:
        with claim:
            remove_abandoned(store.root)
            _make(cache, store, rule, quiet)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise CacheError(
            f"{out}: the neighbours cannot be written ({error.strerror}); nothing of them is kept."
            " Fix: make room, then run the same command again"
        ) from error
    return Neighbours(out, scratch)


def _make(cache: FeatureCache, store: Store, rule: Rule, quiet: bool) -> None:
    """Find the neighbours and write all files, ``neighbours.json`` last."""
    with _file(store, KEYS) as key_file:
        searcher = Searcher(cache, rule, quiet, _key_writer(key_file))
        counts, files = _write(searcher, store, quiet)
    files[KEYS] = {"bytes": key_file.size, "sha256": key_file.sha256}
    record = {
        "version": VERSION,
        "cache": {
            "fingerprint": cache.manifest.fingerprint,
            "kind": cache.manifest.kind,
            "dtype": cache.manifest.dtype,
        },
        "rows": len(cache),
        **rule.fields(len(cache)),
        "index": searcher.facts,
        "found": counts.rows,
        "nearest": counts.nearest(),
        "files": files,
        "libraries": _libraries(),
    }
    store.write(FILE, to_json(record))


def _remove_leftovers(store: Store) -> None:
    """Remove the claim and the parts of a process that was killed when it had just finished."""
    with contextlib.suppress(OSError):
        if store.size(CLAIM) is None:
            return
        claim = store.claim(CLAIM)
        if claim is not None:
            remove_abandoned(store.root)
            claim.release()


def _key_writer(file: Hashed) -> Callable[[list[str]], None]:
    """Return a function that writes keys to ``file``, each as a JSON text on a line."""

    def write(keys: list[str]) -> None:
        lines = [json.dumps(key) + "\n" for key in keys]
        file.write("".join(lines).encode("ascii"))

    return write


def _check_same(existing: Neighbours, cache: FeatureCache, fields: dict) -> None:
    """Raise CacheError unless the same call made the ``existing`` neighbours."""
    existing.check(cache)
    recorded = {name: existing.record.get(name) for name in fields}
    wanted_index = dict(fields["index"])
    recorded_index = {name: existing.record["index"].get(name) for name in wanted_index}
    if "probes" in recorded_index:  # the record has no more probes than there are lists
        wanted_index["probes"] = min(recorded_index["probes"], wanted_index["probes"])
    wanted = {**fields, "index": wanted_index}
    recorded["index"] = recorded_index
    different = differences(wanted, recorded)
    if different:
        raise CacheError(
            f"{existing.store}: holds other neighbours ({'; '.join(different)}). Fix: remove it, or"
            " give another --out"
        )


@dataclass
class Counts:
    """How many rows have all k neighbours, fewer or none, or a search that was cut short.

    ``above`` [len(NEAR)] counts the rows whose nearest other row has a cosine above each of NEAR.
    """

    k: int
    rows: dict[str, int] = field(
        default_factory=lambda: {"full": 0, "fewer": 0, "none": 0, "cut": 0}
    )
    above: np.ndarray = field(default_factory=lambda: np.zeros(len(NEAR), dtype=np.int64))

    def add(self, result: SearchResult) -> None:
        """Count the rows of a search."""
        neighbours = (result.ids >= 0).sum(1)
        is_full = neighbours == self.k
        is_empty = neighbours == 0
        self.rows["full"] += int(is_full.sum())
        self.rows["fewer"] += int((~is_full & ~is_empty).sum())
        self.rows["none"] += int(is_empty.sum())
        self.rows["cut"] += int(result.cut.sum())
        thresholds = np.array(NEAR, dtype=np.float32)
        is_above = result.nearest[:, None] > thresholds
        self.above += is_above.sum(0)

    def nearest(self) -> dict[str, int]:
        """Return cosine -> the rows whose nearest other row is above it."""
        return {str(cosine): int(count) for cosine, count in zip(NEAR, self.above, strict=True)}


def _write(searcher: Searcher, store: Store, quiet: bool) -> tuple[Counts, dict[str, dict]]:
    """Search all rows and write the two arrays; return counts, and file name -> size and digest."""
    total = len(searcher.cache)
    k = searcher.rule.k
    id_type = np.dtype("<i4" if total < 1 << 31 else "<i8")
    cosine_type = np.dtype("<f2")
    counts = Counts(k)
    with (
        _array(store, IDS, (total, k), id_type) as id_file,
        _array(store, COSINES, (total, k), cosine_type) as cosine_file,
        Progress(total, "neighbours", "row", quiet=quiet) as progress,
    ):
        for rows in searcher.blocks():
            result = searcher.search(rows)
            id_file.write(result.ids.astype(id_type))
            cosine_file.write(result.cosines.astype(cosine_type))
            counts.add(result)
            progress.update(len(rows))
    files = {}
    for name, file in ((IDS, id_file), (COSINES, cosine_file)):
        files[name] = {"bytes": file.size, "sha256": file.sha256}
    return counts, files


@contextlib.contextmanager
def _array(store: Store, name: str, shape: tuple[int, int], dtype: np.dtype) -> Iterator[Hashed]:
    """Yield a file to write the rows of a .npy array to.

    It gets its name when the block ends without an error.
    """
    with _file(store, name) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        yield file


@contextlib.contextmanager
def _file(store: Store, name: str) -> Iterator[Hashed]:
    """Yield a new file, which gets its name when the block ends without an error."""
    part = store.part(name)
    try:
        with Hashed(part) as file:
            yield file
        store.commit(part, name)
    finally:
        part.unlink(missing_ok=True)


def _libraries() -> dict[str, str]:
    """Return the versions of the libraries that found the neighbours."""
    versions = libraries(("dimefm", "numpy"))
    return {
        "dimefm": versions["dimefm"],
        "faiss": import_faiss().__version__,
        "numpy": versions["numpy"],
    }
