"""Finding the neighbours of every row of a cache, once, and writing them down."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.cache.manifest import differences
from dimefm.curate.neighbours.graph import COSINES, FILE, IDS, VERSION, Neighbours, Rule
from dimefm.curate.neighbours.search import Searcher
from dimefm.data.views.patch_tokens import expect_rows
from dimefm.errors import CacheError
from dimefm.runtime.progress import Progress
from dimefm.storage.files import Hashed, to_json
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
    """Find the neighbours of each row of ``cache``, write them to the folder or URL ``out`` and
    return them, opened.

    What is there already by the same rule is returned as it is. Until ``neighbours.json`` is
    written, last, there are no neighbours, and the same call begins anew. Memory is the index, 4
    bytes x rows x dimensions, and blocks of rows. Raises CacheError when ``out`` holds others,
    another process writes there, or the cache is damaged, of one row or of tokens.
    """
    expect_rows([cache])
    rule, store = rule or Rule(), open_store(out, scratch)
    fields = rule.fields(len(cache))
    if store.read(FILE) is not None:
        return _as_before(Neighbours(out, scratch), cache, fields)
    if len(cache) < 2:
        raise CacheError(f"{cache.store}: {len(cache)} rows; neighbours need two at least")
    claim = store.claim(CLAIM)
    if claim is None:
        raise CacheError(
            f"{out}: another process writes neighbours there; wait for it, or give another folder"
        )
    with claim:
        searcher = Searcher(cache, rule, quiet)
        fields |= {"index": searcher.facts, **_write(searcher, store, quiet)}
        of = {
            "fingerprint": cache.manifest.fingerprint,
            "kind": cache.manifest.kind,
            "dtype": cache.manifest.dtype,
        }
        head = {"version": VERSION, "cache": of, "rows": len(cache)}
        store.write(FILE, to_json({**head, **fields, "libraries": _libraries()}))
    return Neighbours(out, scratch)


def _as_before(there: Neighbours, cache: FeatureCache, fields: dict) -> Neighbours:
    """Return neighbours that are there when the same call made them; raise CacheError naming what
    differs if not.
    """
    there.check(cache)
    index = {name: there.record["index"].get(name) for name in fields["index"]}
    if "probes" in index:  # no more of them than there are lists
        fields = {
            **fields,
            "index": {**fields["index"], "probes": min(index["probes"], fields["index"]["probes"])},
        }
    found = differences(
        fields, {name: there.record.get(name) for name in fields} | {"index": index}
    )
    if found:
        raise CacheError(
            f"{there.store}: holds other neighbours ({'; '.join(found)}); remove it, or give"
            " another --out"
        )
    return there


def _write(searcher: Searcher, store: Store, quiet: bool) -> dict:
    """Search all rows, write the two arrays, and return what the record says of them."""
    total, k = len(searcher.cache), searcher.rule.k
    types = {IDS: np.dtype("<i4" if total < 1 << 31 else "<i8"), COSINES: np.dtype("<f2")}
    counts = {"full": 0, "fewer": 0, "none": 0, "cut": 0}
    nearest = np.zeros(len(NEAR), dtype=np.int64)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(_array(store, name, (total, k), types[name]))
            for name in types
        }
        progress = stack.enter_context(Progress(total, "neighbours", "row", quiet=quiet))
        for rows in searcher.blocks():
            found = searcher.search(rows)
            files[IDS].write(found.ids.astype(types[IDS]))
            files[COSINES].write(found.cosines.astype(types[COSINES]))
            number = (found.ids >= 0).sum(1)
            some = {
                "full": number == k,
                "fewer": (number > 0) & (number < k),
                "none": number == 0,
                "cut": found.cut,
            }
            counts = {name: counts[name] + int(some[name].sum()) for name in counts}
            nearest += (found.nearest[:, None] > np.array(NEAR, dtype=np.float32)).sum(0)
            progress.update(len(rows))
    written = {name: {"bytes": file.size, "sha256": file.sha256} for name, file in files.items()}
    return {
        "found": counts,
        "nearest": dict(zip(map(str, NEAR), nearest.tolist(), strict=True)),
        "files": written,
    }


@contextlib.contextmanager
def _array(store: Store, name: str, shape: tuple[int, int], dtype: np.dtype) -> Iterator[Hashed]:
    """Give a file to write the rows of a .npy array to; it gets its name when the block ends
    without an error.
    """
    part = store.part(name)
    try:
        with Hashed(part) as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            yield file
        store.commit(part, name)
    finally:
        part.unlink(missing_ok=True)


def _libraries() -> dict[str, str]:
    """Return the versions of what found the neighbours."""
    import faiss

    return {
        "dimefm": importlib.metadata.version("dimefm"),
        "faiss": faiss.__version__,
        "numpy": np.__version__,
    }
