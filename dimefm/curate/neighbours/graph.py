"""The neighbours of a cache's rows as a folder: two arrays, and a record that describes them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.errors import CacheError
from dimefm.storage.files import sha256_file
from dimefm.storage.small_files import parse_json
from dimefm.storage.stores import Store, open_store

VERSION = 1
FILE = "neighbours.json"
IDS = "ids.npy"
COSINES = "cosines.npy"
KEYS = "keys.jsonl"
MOST_NEIGHBOURS = 1024  # of a row
KINDS = ("auto", "exact", "ivf")
MOST_EXACT = 250_000  # rows up to which "auto" is exact
SAMPLE = 100_000  # rows whose cosines are described
LOW_RECALL = 0.9  # recall below which more probes are advised


@dataclass(frozen=True)
class Rule:
    """Which rows are neighbours, and how they are found.

    A row's neighbours are its ``k`` nearest rows by cosine, among the rows whose cosine is from
    ``min_cosine`` to ``max_cosine``, except rows with the same key. The default ``max_cosine``
    excludes equal rows, for example of equal sentences. ``index`` is "exact" (every row is compared
    with all others), "ivf" (with the rows of the ``probes`` most similar lists) or "auto": exact up
    to MOST_EXACT rows. Raises ValueError for impossible values.
    """

    k: int = 16
    min_cosine: float = -1.0
    max_cosine: float = 1 - 1e-4
    index: str = "auto"
    probes: int = 64

    def __post_init__(self):
        if not 1 <= self.k <= MOST_NEIGHBOURS:
            raise ValueError(f"k is {self.k}, expected 1 to {MOST_NEIGHBOURS}")
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
        if self.index != "auto":
            return self.index
        return "exact" if rows <= MOST_EXACT else "ivf"

    def fields(self, rows: int) -> dict:
        """Return the fields of the record that this rule decides, for a cache of ``rows`` rows."""
        index: dict = {"kind": self.kind(rows)}
        if index["kind"] == "ivf":
            index["probes"] = self.probes
        return {
            "k": self.k,
            "metric": "cosine",
            "min_cosine": self.min_cosine,
            "max_cosine": self.max_cosine,
            "excluded": ["itself", "same key"],
            "index": index,
        }


class Neighbours:
    """The nearest other rows of each row of a cache, opened from a folder or URL.

    ``ids`` [rows, k] holds row numbers of the cache, nearest first, -1 where there are no more;
    ``cosines`` [rows, k], float16, holds their cosines, NaN where there are no more. Both are
    memory maps. Raises CacheError when the folder is unfinished, damaged or newer; :meth:`check`
    raises it when the neighbours are those of another cache.
    """

    def __init__(self, root: str | Path, scratch: str | Path | None = None):
        self.store = open_store(root, scratch)
        self.record = read_record(self.store)
        self.rows = int(self.record["rows"])
        self.k = int(self.record["k"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file of row numbers."""
        return self.record["files"][IDS]["sha256"]

    @functools.cached_property
    def ids(self) -> np.memmap:
        """Row numbers [rows, k], int32 or int64, -1 where a row has no more neighbours."""
        return self._map(IDS, "i")

    @functools.cached_property
    def cosines(self) -> np.ndarray:
        """Cosines [rows, k], float16, NaN where a row has no more neighbours."""
        return self._map(COSINES, "f")

    def keys(self) -> list[str]:
        """Return the keys of all rows: row i of the cache, and number i in ``ids``, has keys()[i].

        Raises CacheError when the neighbours were made by a dimefm that wrote no keys, or the file
        is damaged.
        """
        where = self.store.where(KEYS)
        recorded = self.record["files"].get(KEYS)
        if recorded is None:
            raise CacheError(
                f"{self.store}: an earlier dimefm made it, without {KEYS}. Fix: use the keys of the"
                " cache, FeatureCache.keys(), or make the neighbours again"
            )
        damaged = CacheError(
            f"{where}: missing or damaged. Fix: remove {self.store} and make the neighbours again:"
            " dimefm cache neighbours"
        )
        if self.store.size(KEYS) != recorded["bytes"]:
            raise damaged
        path = self.store.local(KEYS)
        if sha256_file(path) != recorded["sha256"]:
            raise damaged
        try:
            with path.open(encoding="ascii") as lines:
                keys = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise damaged from error
        if len(keys) != self.rows or not all(isinstance(key, str) for key in keys):
            raise damaged
        return keys

    def _map(self, name: str, kind: str) -> np.memmap:
        """Return a file of the folder as a memory map [rows, k] with numbers of this ``kind``."""
        where = self.store.where(name)
        remedy = f"remove {self.store} and make it again: dimefm cache neighbours"
        recorded = self.record["files"][name]["bytes"]
        size = self.store.size(name)
        if size is None:
            raise CacheError(f"{where}: is missing. Fix: {remedy}")
        if size != recorded:
            raise CacheError(f"{where}: {size} bytes, {FILE} says {recorded}. Fix: {remedy}")
        try:
            array = np.lib.format.open_memmap(self.store.local(name), mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise CacheError(f"{where}: damaged ({error}). Fix: {remedy}") from error
        if array.shape != (self.rows, self.k) or array.dtype.kind != kind:
            raise CacheError(
                f"{where}: {array.dtype} {list(array.shape)}, expected"
                f" [{self.rows}, {self.k}]. Fix: {remedy}"
            )
        return array

    def _refuse_cut_short(self, name: str, array: np.memmap) -> None:
        """Raise CacheError when the file of a memory map has become shorter."""
        size = os.path.getsize(array.filename)
        recorded = self.record["files"][name]["bytes"]
        if size < recorded:
            raise CacheError(
                f"{self.store.where(name)}: {size} bytes, {FILE} says {recorded}; it was cut short"
                f" while it was read. Fix: remove {self.store} and make it again: dimefm cache"
                " neighbours"
            )

    def check(self, cache: FeatureCache) -> None:
        """Raise CacheError unless these are the neighbours of the rows of ``cache``.

        The format and the dtype of the cache do not matter.
        """
        recorded = self.record["cache"]["fingerprint"]
        fingerprint = cache.manifest.fingerprint
        if recorded != fingerprint or self.rows != len(cache):
            raise CacheError(
                f"{self.store}: neighbours of the {self.rows:,} rows of cache {recorded[:12]}, but"
                f" {cache.store} is {fingerprint[:12]} with {len(cache):,} rows. Fix: make its own:"
                f" dimefm cache neighbours {cache.store} --out DIR"
            )

    def draw(
        self, rows: np.ndarray, seeds: Sequence[int] | np.ndarray, ranks: tuple[int, int]
    ) -> np.ndarray:
        """Return one neighbour of each of ``rows`` [n], int64 [n], -1 for a row without any.

        ``seeds`` [n] (0 or more) select it among the row's neighbours at ranks ``ranks[0]`` to
        ``ranks[1] - 1`` (0 is the nearest), with equal probability. This is a pure function of its
        arguments. Raises CacheError unless 0 <= first < end <= k, and when a stored number lies
        outside the cache; IndexError when one of ``rows`` does.
        """
        first, end = ranks
        if not 0 <= first < end <= self.k:
            raise CacheError(
                f"{self.store}: ranks {first} to {end} asked for, expected 0 <= first < end <="
                f" {self.k}, the neighbours that each row has here. Fix: ask for fewer, or make"
                " more: dimefm cache neighbours --k"
            )
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size:
            lowest = int(rows.min())
            highest = int(rows.max())
            if lowest < 0 or highest >= self.rows:
                raise IndexError(
                    f"{self.store}: rows {lowest} to {highest} asked for, there are 0 to"
                    f" {self.rows - 1}"
                )
        self._refuse_cut_short(IDS, self.ids)
        candidates = np.asarray(self.ids[rows, first:end], dtype=np.int64)
        largest = int(candidates.max(initial=-1))
        if largest >= self.rows:
            raise CacheError(
                f"{self.store.where(IDS)}: row {largest} of {self.rows}; the graph is damaged."
                f" Fix: remove {self.store} and make it again: dimefm cache neighbours"
            )
        counts = (candidates >= 0).sum(1).astype(np.uint64)
        at_least_one = np.maximum(counts, np.uint64(1))
        places = np.asarray(seeds, dtype=np.uint64) % at_least_one
        columns = places.astype(np.int64)[:, None]
        drawn = np.take_along_axis(candidates, columns, axis=1)
        return drawn[:, 0]

    def describe(self) -> str:
        """Return a human-readable summary of a few lines."""
        record = self.record
        counts = record["found"]
        cache = record["cache"]
        step = max(1, self.rows // SAMPLE)
        medians = f"median {_median(self.cosines[::step, 0])} at the nearest"
        if self.k > 1:
            medians += f", {_median(self.cosines[::step, -1])} at the last"
        lines = [
            f"{self.rows:,} {cache['kind']} rows, up to {self.k} neighbours each",
            f"search       {_describe_index(record['index'])}",
            f"cosines      from {record['min_cosine']:g} to {record['max_cosine']:g}; {medians}",
            (
                f"neighbours   {counts['full']:,} rows have {self.k}, {counts['fewer']:,} have"
                f" fewer, {counts['none']:,} have none"
            ),
        ]
        left_out = self._left_out()
        if left_out:
            lines.append(left_out)
        if counts["cut"]:
            lines.append(
                f"cut short    {counts['cut']:,} rows: too many rows that are left out are nearer"
            )
        lines.append(f"of cache     {cache['fingerprint'][:12]}")
        return "\n".join(lines)

    def _left_out(self) -> str | None:
        """Return how many rows have a duplicate that is left out, None if there is none."""
        record = self.record
        highest = record["max_cosine"]
        above = [int(count) for name, count in record["nearest"].items() if float(name) >= highest]
        if not above or not max(above):
            return None
        return (
            f"duplicates   {max(above):,} rows have another row above cosine {highest:g}, which is"
            " left out; --max-cosine 1 keeps it"
        )

    def nearest_pairs(self, most: int) -> list[tuple[str, str, float]]:
        """Return (key, key, cosine) of the nearest neighbours, the nearest first, each pair once.

        At most SAMPLE evenly spaced rows are looked at.
        """
        step = max(1, self.rows // SAMPLE)
        rows = np.arange(0, self.rows, step)
        cosines = np.asarray(self.cosines[::step, 0], dtype=np.float32)
        order = np.argsort(-cosines, kind="stable")
        keys = self.keys()
        pairs: dict[tuple[int, int], float] = {}
        for place in order[: 2 * most].tolist():
            row = int(rows[place])
            neighbour = int(self.ids[row, 0])
            if neighbour >= 0 and len(pairs) < most:
                pair = (min(row, neighbour), max(row, neighbour))
                pairs.setdefault(pair, float(cosines[place]))
        return [(keys[a], keys[b], cosine) for (a, b), cosine in pairs.items()]

    def report(self) -> str:
        """Return a table of the cosines of the nearest other rows: how many near-duplicates.

        The window of cosines does not apply to it.
        """
        lines = [f"{'nearest other row':<20} {'rows':>12} {'share':>8}"]
        for name, count in self.record["nearest"].items():
            label = f"cosine > {name}"
            share = count / self.rows
            lines.append(f"{label:<20} {count:>12,} {share:>8.1%}")
        return "\n".join(lines)

    def __getstate__(self):
        state = dict(self.__dict__)
        state.pop("ids", None)
        state.pop("cosines", None)
        return state


def _describe_index(index: dict) -> str:
    """Return a human-readable description of the index that found the neighbours."""
    if index["kind"] == "exact":
        return "exact"
    text = (
        f"IVF, {index['probes']:,} of {index['lists']:,} lists, recall at 1"
        f" {index['recall_at_1']:.1%} of {index['recall_rows']:,} rows"
    )
    if index["recall_at_1"] < LOW_RECALL:
        text += "; low, more --probes find more"
    return text


def _median(cosines: np.ndarray) -> str:
    """Return the median of the cosines that are not NaN, as text."""
    cosines = np.asarray(cosines, dtype=np.float32)
    finite = cosines[np.isfinite(cosines)]
    if not len(finite):
        return "none"
    return f"{np.median(finite):.3f}"


def read_record(store: Store) -> dict:
    """Return ``neighbours.json`` as plain values.

    Raises CacheError when it is absent, damaged or newer.
    """
    where = store.where(FILE)
    try:
        text = store.read(FILE)
        if text is None:
            raise CacheError(
                f"{store}: no {FILE}, so no neighbours, or unfinished ones. Fix: check the path, or"
                f" make them: dimefm cache neighbours CACHE --out {store}"
            )
        record = parse_json(text)
        if record.get("version") != VERSION:
            raise CacheError(
                f"{where}: version {record.get('version')!r}, this dimefm reads version {VERSION}."
                " Fix: install a newer dimefm, or make the neighbours again"
            )
        _check_types(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(
            f"{where}: damaged ({error!r}). Fix: remove {store} and make the neighbours again"
        ) from error
    return record


def _check_types(record: dict) -> None:
    """Raise ValueError, KeyError or TypeError for a field with an impossible value."""
    counts = {"rows": record["rows"], "k": record["k"]}
    counts |= record["found"]
    counts |= record["nearest"]
    names = [IDS, COSINES]
    if KEYS in record["files"]:
        names.append(KEYS)
    for name in names:
        counts[name] = record["files"][name]["bytes"]
    for name, value in counts.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is no count")
    if not 1 <= record["k"] <= MOST_NEIGHBOURS or record["rows"] < 1:
        raise ValueError("rows or k is no count")
    digests = [record["cache"]["fingerprint"]]
    for name in names:
        digests.append(record["files"][name]["sha256"])
    if not all(isinstance(digest, str) for digest in digests):
        raise ValueError("a digest is no text")
    if record["index"]["kind"] not in ("exact", "ivf"):
        raise ValueError("the kind of the index is unknown")
