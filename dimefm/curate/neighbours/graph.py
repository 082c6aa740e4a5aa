"""The neighbours of a cache's rows as a folder: two arrays and the record that says what they
are.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.errors import CacheError
from dimefm.storage.stores import Store, open_store

VERSION = 1
FILE = "neighbours.json"
IDS, COSINES = "ids.npy", "cosines.npy"
MOST = 1024  # neighbours of a row
KINDS = ("auto", "exact", "ivf")
EXACT = 250_000  # rows up to which "auto" is exact
SAMPLE = 100_000  # rows whose cosines are described
LOW = 0.9  # recall below which more probes are advised


@dataclass(frozen=True)
class Rule:
    """Which rows are neighbours, and how they are found.

    The ``k`` nearest by cosine, among the rows whose cosine is from ``min_cosine`` to
    ``max_cosine``; never a row of the same key. The default cut leaves equal rows out, as those of
    equal sentences are. ``index`` is "exact" (every row is compared with every other), "ivf" (with
    those of the ``probes`` most similar of many lists) or "auto": exact up to EXACT rows. Raises
    ValueError for values that cannot be.
    """

    k: int = 16
    min_cosine: float = -1.0
    max_cosine: float = 1 - 1e-4
    index: str = "auto"
    probes: int = 64

    def __post_init__(self):
        if not 1 <= self.k <= MOST:
            raise ValueError(f"k is {self.k}, expected 1 to {MOST}")
        if not -1 <= self.min_cosine < self.max_cosine <= 1:
            raise ValueError(
                f"cosines from {self.min_cosine:g} to {self.max_cosine:g}: expected -1 <= min < max"
                " <= 1"
            )
        if self.index not in KINDS or self.probes < 1:
            raise ValueError(
                f"index {self.index!r} with {self.probes} probes; expected {', '.join(KINDS)}, and"
                " 1 or more"
            )

    def kind(self, rows: int) -> str:
        """Return the index that a cache of ``rows`` rows gets: "exact" or "ivf"."""
        return self.index if self.index != "auto" else "exact" if rows <= EXACT else "ivf"

    def fields(self, rows: int) -> dict:
        """Return what of the record follows from this rule for a cache of ``rows`` rows."""
        kind = self.kind(rows)
        index = {"kind": kind} if kind == "exact" else {"kind": kind, "probes": self.probes}
        window = {"min_cosine": self.min_cosine, "max_cosine": self.max_cosine}
        return {
            "k": self.k,
            "metric": "cosine",
            **window,
            "excluded": ["itself", "same key"],
            "index": index,
        }


class Neighbours:
    """The nearest other rows of each row of a cache, opened from a folder or URL.

    ``ids`` [rows, k] holds row numbers of the cache, nearest first, -1 where there are no more;
    ``cosines`` [rows, k], float16, their cosines, NaN there. Both are memory maps. Raises
    CacheError when the folder is unfinished, damaged or newer; :meth:`check` when it is of another
    cache.
    """

    def __init__(self, root: str | Path, scratch: str | Path | None = None):
        self.store = open_store(root, scratch)
        self.record = read_record(self.store)
        self.rows, self.k = int(self.record["rows"]), int(self.record["k"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file of row numbers: graphs of one fingerprint lead to the same rows."""
        return self.record["files"][IDS]["sha256"]

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """Row numbers [rows, k], int32 or int64, -1 where a row has no more neighbours."""
        return self._map(IDS, "i")

    @functools.cached_property
    def cosines(self) -> np.ndarray:
        """Cosines [rows, k], float16, NaN where a row has no more neighbours."""
        return self._map(COSINES, "f")

    def _map(self, name: str, kind: str) -> np.ndarray:
        stated, size = self.record["files"][name]["bytes"], self.store.size(name)
        remedy = f"remove {self.store} and make it again: dimefm cache neighbours"
        if size != stated:
            found = "is missing" if size is None else f"{size} bytes, {FILE} says {stated}"
            raise CacheError(f"{self.store.where(name)}: {found}; {remedy}")
        try:
            found = np.lib.format.open_memmap(self.store.local(name), mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise CacheError(f"{self.store.where(name)}: damaged ({error}); {remedy}") from error
        if found.shape != (self.rows, self.k) or found.dtype.kind != kind:
            raise CacheError(
                f"{self.store.where(name)}: {found.dtype} {list(found.shape)}, expected"
                f" [{self.rows}, {self.k}]; {remedy}"
            )
        return found

    def check(self, cache: FeatureCache) -> None:
        """Raise CacheError when these are not the neighbours of the rows of ``cache``, in any
        format or dtype of it.
        """
        ours, theirs = self.record["cache"]["fingerprint"], cache.manifest.fingerprint
        if ours != theirs or self.rows != len(cache):
            raise CacheError(
                f"{self.store}: neighbours of the {self.rows:,} rows of cache {ours[:12]}, but"
                f" {cache.store} is {theirs[:12]} with {len(cache):,} rows; make its own: dimefm"
                f" cache neighbours {cache.store} --out DIR"
            )

    def draw(
        self, rows: np.ndarray, seeds: Sequence[int] | np.ndarray, ranks: tuple[int, int]
    ) -> np.ndarray:
        """Return one neighbour of each of ``rows`` [n], as its seed in ``seeds`` [n] (0 or more)
        selects; int64 [n].

        It is one of those at ranks ``ranks[0]`` to ``ranks[1] - 1`` (0 is the nearest) that the row
        has, each equally likely; -1 where it has none there. A pure function of its arguments.
        Raises CacheError when ``ranks`` are not in 0 <= first < end <= k, or what is stored leads
        outside the cache; IndexError when ``rows`` do.
        """
        first, end = ranks
        if not 0 <= first < end <= self.k:
            raise CacheError(
                f"{self.store}: ranks {first} to {end} asked for, expected 0 <= first < end <="
                f" {self.k}, the neighbours that each row has here; ask for fewer, or make more:"
                " dimefm cache neighbours --k"
            )
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise IndexError(
                f"{self.store}: rows {rows.min()} to {rows.max()} asked for, there are 0 to"
                f" {self.rows - 1}"
            )
        some = np.asarray(self.ids[rows, first:end], dtype=np.int64)
        if some.size and int(some.max()) >= self.rows:
            raise CacheError(
                f"{self.store.where(IDS)}: row {int(some.max())} of {self.rows}; damaged, make it"
                " again"
            )
        counts = (some >= 0).sum(1).astype(np.uint64)
        places = np.asarray(seeds, dtype=np.uint64) % np.maximum(counts, np.uint64(1))
        return np.take_along_axis(some, places.astype(np.int64)[:, None], axis=1)[:, 0]

    def describe(self) -> str:
        """Return a few lines for people."""
        record, found = self.record, self.record["found"]
        index = record["index"]
        how = "exact"
        if index["kind"] == "ivf":
            recall = f"recall at 1 {index['recall_at_1']:.1%} of {index['recall_rows']:,} rows"
            how = f"IVF, {index['probes']:,} of {index['lists']:,} lists, {recall}"
        if index["kind"] == "ivf" and index["recall_at_1"] < LOW:
            how += "; low, more --probes find more"
        medians = [
            _median(self.cosines[:: max(1, self.rows // SAMPLE), rank]) for rank in (0, self.k - 1)
        ]
        window = f"from {record['min_cosine']:g} to {record['max_cosine']:g}"
        last = f", {medians[1]} at the last" if self.k > 1 else ""
        lines = [
            f"{self.rows:,} {record['cache']['kind']} rows, up to {self.k} neighbours each",
            f"search       {how}",
            f"cosines      {window}; median {medians[0]} at the nearest{last}",
            (
                f"neighbours   {found['full']:,} rows have {self.k}, {found['fewer']:,} have fewer,"
                f" {found['none']:,} have none"
            ),
            f"of cache     {record['cache']['fingerprint'][:12]}",
        ]
        if found["cut"]:
            lines.insert(
                4, f"cut short    {found['cut']:,} rows: too many rows that are left out are nearer"
            )
        return "\n".join(lines)

    def report(self) -> str:
        """Return a table of how near the nearest other row is, before the cut: how much of a cache
        is nearly double.
        """
        lines = [f"{'nearest other row':<20} {'rows':>12} {'share':>8}"]
        for name, count in self.record["nearest"].items():
            lines.append(f"{'cosine > ' + name:<20} {count:>12,} {count / self.rows:>8.1%}")
        return "\n".join(lines)

    def __getstate__(self):
        return {
            name: value for name, value in self.__dict__.items() if name not in ("ids", "cosines")
        }


def _median(cosines: np.ndarray) -> str:
    """Return the median of those cosines that are there, for people."""
    there = np.asarray(cosines, dtype=np.float32)
    there = there[np.isfinite(there)]
    return f"{np.median(there):.3f}" if len(there) else "none"


def read_record(store: Store) -> dict:
    """Return ``neighbours.json`` as plain values; raise CacheError when it is absent, damaged or
    newer.
    """
    where = store.where(FILE)
    try:
        text = store.read(FILE)
        if text is None:
            raise CacheError(
                f"{store}: no {FILE}, so no neighbours, or unfinished ones; check the path, or make"
                f" them: dimefm cache neighbours CACHE --out {store}"
            )
        record = json.loads(text)
        if record.get("version") != VERSION:
            raise CacheError(
                f"{where}: version {record.get('version')!r}, this dimefm reads version {VERSION};"
                " install a newer dimefm, or make the neighbours again"
            )
        _check_types(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(
            f"{where}: damaged ({error!r}); remove {store} and make the neighbours again"
        ) from error
    return record


def _check_types(record: dict) -> None:
    """Raise ValueError, KeyError or TypeError naming a field of a record that cannot be."""
    whole = {"rows": record["rows"], "k": record["k"], **record["found"], **record["nearest"]}
    whole |= {name: record["files"][name]["bytes"] for name in (IDS, COSINES)}
    wrong = next(
        (name for name, value in whole.items() if type(value) is not int or value < 0), None
    )
    if wrong or not 1 <= record["k"] <= MOST or record["rows"] < 1:
        raise ValueError(f"{wrong or 'rows or k'} is no count")
    digests = [
        record["cache"]["fingerprint"],
        *(record["files"][name]["sha256"] for name in (IDS, COSINES)),
    ]
    if (
        not all(isinstance(digest, str) for digest in digests)
        or record["index"]["kind"] not in KINDS[1:]
    ):
        raise ValueError("a digest or the index")
