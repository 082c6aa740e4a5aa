"""Reading: random rows, whole ranges, whole shards, a block shuffle, against memory maps, plain
reads and DIME-FM's way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks._cache_data import Sizes, header, made, names, write
from benchmarks._dime_fm_tsv import Composite
from benchmarks._timing import Line, Work, interleaved
from dimefm.cache import FeatureCache
from dimefm.cache.convert import convert

BATCH = 640  # rows of a step of DIME-FM's training
GATHERS = 32  # batches timed at once
PEER_ROWS = 3  # rows that are read the slow way in a round
SPAN = 4096  # rows of a sequential read
WINDOW = (256, 64)  # rows of a block, blocks of a window
GATHER, SEQUENTIAL = (">=", 0.5), (">=", 0.7)
BASE = {
    "tsv": "float32",
    "int8": "int8",
}  # dtype of the plain rows that a cache is compared with, float16 for the others


class Stores:
    """The same rows in every form; ``caches`` by name, ``built`` seconds that a flat copy took."""

    def __init__(self, sizes: Sizes):
        self.sizes, folder = sizes, sizes.folder
        rows, self.keys = made(sizes.rows, sizes.dim), names(0, sizes.rows)
        self.plain: dict[str, Path] = {}
        for dtype in ("float16", "float32"):
            self.plain[dtype] = folder / f"{dtype}.npy"
            np.save(self.plain[dtype], rows.astype(dtype))
        forms = {
            "hdf5": ("hdf5", 1),
            "parquet": ("parquet", 1),
            "tsv": ("tsv", 1),
            "40 shards": ("hdf5", 40),
        }
        forms["many shards"] = ("hdf5", many(sizes.rows))
        for name, (format_, shards) in forms.items():
            write(folder / name, header(format_, sizes.dim), rows, self.keys, shards)
        convert(FeatureCache(folder / "hdf5"), folder / "int8", dtype="int8")
        self.caches = {name: FeatureCache(folder / name) for name in (*forms, "int8")}
        self.plain["int8"] = folder / "int8.npy"
        np.save(self.plain["int8"], self.caches["int8"].stored(slice(None)))
        self.built = {name: _seconds(self.caches[name]) for name in ("parquet", "tsv")}
        for cache in self.caches.values():
            assert np.allclose(cache[[0, len(cache) - 1]], rows[[0, -1]], atol=2e-3), cache.root

    def tsv(self) -> Path:
        """Return the one TSV file of the tsv cache."""
        return self.caches["tsv"].root / self.caches["tsv"].manifest.shards[0].file


def many(rows: int) -> int:
    """Return how many shards the cache of many shards has: one for 500 rows, 40 to 400."""
    return min(400, max(40, rows // 500))


def _seconds(cache: FeatureCache) -> float:
    """Return how long the first row takes, which makes the flat copy."""
    started = time.perf_counter()
    cache[0]
    return time.perf_counter() - started


def _batches(rows: int, repeats: int, size: int, count: int) -> list[list[np.ndarray]]:
    """Return for each round ``count`` batches of row numbers, from one random permutation after
    another.
    """
    random, found = np.random.default_rng(1), []
    for _ in range(repeats + 1):
        order = np.concatenate([random.permutation(rows) for _ in range(-(-size * count // rows))])
        found.append([order[i * size : (i + 1) * size] for i in range(count)])
    return found


def gathers(stores: Stores) -> list[Line]:
    """Time random batches of 640 rows as DIME-FM's training reads them."""
    sizes = stores.sizes
    batches = _batches(sizes.rows, sizes.repeats, BATCH, GATHERS)
    cache, code = stores.caches["hdf5"], stores.caches["int8"].code
    maps = {dtype: np.load(path, mmap_mode="r") for dtype, path in stores.plain.items()}
    sources = {
        **stores.caches,
        **{f"numpy {dtype}": rows for dtype, rows in maps.items() if dtype != "int8"},
    }

    def all_of(source) -> Work:
        return Work(_walk(source, batches), BATCH * GATHERS)

    def peer(collect: bool) -> Work:
        slow = Composite(stores.tsv(), collect)
        return Work(
            lambda repeat: [slow[int(row)] for row in batches[repeat][0][:PEER_ROWS]], PEER_ROWS
        )

    works = {name: all_of(source) for name, source in sources.items()}
    codes, plain = np.asarray(maps["int8"]), maps["float16"]
    works["numpy int8"] = Work(
        lambda repeat: [code.decode(codes[rows]) for rows in batches[repeat]], BATCH * GATHERS
    )
    works["one row"] = Work(lambda repeat: [cache[int(row)] for row in batches[repeat][0]], BATCH)
    works["numpy one row"] = Work(
        lambda repeat: [np.array(plain[int(row)]) for row in batches[repeat][0]], BATCH
    )
    works |= {"peer": peer(True), "peer without gc": peer(False)}
    seen = interleaved(works, sizes.repeats)
    lines = []
    for name in stores.caches:
        dtype, goal = BASE.get(name, "float16"), GATHER if name != "int8" else None
        what = (
            f"{name}: cache[640 random rows], against numpy's map of"
            f" {dtype}{' + decode' * (name == 'int8')}"
        )
        lines.append(
            Line(
                f"gather {name} / numpy map",
                what,
                seen[name],
                against=seen[f"numpy {dtype}"],
                goal=goal,
            )
        )
    for name in stores.caches:
        what = f"{name}: the same, against DIME-FM's access pattern"
        lines.append(
            Line(
                f"gather {name} / DIME-FM",
                what,
                seen[name],
                against=seen["peer"],
                goal=(">=", 1000),
            )
        )
    what = "hdf5: the same, against DIME-FM's without its gc.collect()"
    lines.append(
        Line(
            "gather hdf5 / DIME-FM without gc", what, seen["hdf5"], against=seen["peer without gc"]
        )
    )
    what = "hdf5: cache[i] row by row, against numpy's map row by row"
    lines.append(Line("one row / numpy map", what, seen["one row"], against=seen["numpy one row"]))
    for name, seconds in stores.built.items():
        lines.append(
            Line(
                f"flat copy {name}",
                f"{name}: its flat copy, made once (with SHA-256)",
                sizes.rows / seconds,
            )
        )
    return lines


def ranges(stores: Stores) -> list[Line]:
    """Time a sequential read in blocks of 4096 rows against ``readinto`` of the same bytes, all
    from the page cache.
    """
    sizes = stores.sizes
    starts = range(0, sizes.rows, SPAN)

    def streamed(cache: FeatureCache) -> Work:
        return Work(
            lambda _: [
                len(keys) for info in cache.manifest.shards for keys, _ in cache.blocks(info)
            ],
            sizes.rows,
        )

    works = {name: Work(_spans(cache, starts), sizes.rows) for name, cache in stores.caches.items()}
    works |= {
        f"plain {dtype}": Work(_plain(path, sizes.dim, dtype), sizes.rows)
        for dtype, path in stores.plain.items()
    }
    works |= {f"streamed {name}": streamed(cache) for name, cache in stores.caches.items()}
    seen = interleaved(works, sizes.repeats)
    lines = []
    for name in stores.caches:
        dtype, goal = BASE.get(name, "float16"), SEQUENTIAL if name != "int8" else None
        what = (
            f"{name}: cache[a:b] of {SPAN} rows{' with decode' * (name == 'int8')}, against"
            f" readinto of {dtype}"
        )
        lines.append(
            Line(
                f"sequential {name} / readinto",
                what,
                seen[name],
                against=seen[f"plain {dtype}"],
                goal=goal,
            )
        )
    for name in stores.caches:
        dtype, note = (
            BASE.get(name, "float16"),
            ", a list column that any tool reads" * (name == "parquet"),
        )
        what = f"{name}: cache.blocks(shard), keys decoded and checked{note}"
        lines.append(
            Line(
                f"streaming {name} / readinto",
                what,
                seen[f"streamed {name}"],
                against=seen[f"plain {dtype}"],
            )
        )
    return lines


def _spans(cache: FeatureCache, starts: range):
    def run(_: int) -> None:
        for a in starts:
            cache[a : a + SPAN]

    return run


def _plain(path: Path, dim: int, dtype: str):
    """Return a read of the raw bytes of an .npy file into one buffer, block by block."""
    buffer = bytearray(SPAN * dim * np.dtype(dtype).itemsize)
    first = np.load(path, mmap_mode="r").offset

    def run(_: int) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(first)
            while file.readinto(buffer):
                pass

    return run


def shuffled(rows: int, seed: int, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Yield batches of row numbers: blocks of 256 in random order, rows shuffled inside windows of
    64 blocks.
    """
    random, (block, window) = np.random.default_rng(seed), WINDOW
    order, rest = random.permutation(-(-rows // block)), np.empty(0, dtype=np.int64)
    for start in range(0, len(order), window):
        found = (order[start : start + window, None] * block + np.arange(block)).ravel()
        found = random.permutation(found[found < rows])
        found = np.concatenate([rest, found])
        full = len(found) // batch * batch
        yield from found[:full].reshape(-1, batch)
        rest = found[full:]


def block_shuffle(stores: Stores) -> list[Line]:
    """Time a block shuffle through ``cache[rows]``; the order of rows is made beforehand."""
    sizes = stores.sizes
    orders = [list(shuffled(sizes.rows, repeat)) for repeat in range(sizes.repeats + 1)]
    count = len(orders[0]) * BATCH
    if not count:
        orders, count = [[np.arange(sizes.rows)]] * (sizes.repeats + 1), sizes.rows
    plain = np.load(stores.plain["float16"], mmap_mode="r")
    works = {
        name: Work(_walk(source, orders), count)
        for name, source in {**stores.caches, "numpy": plain}.items()
    }
    seen = interleaved(works, sizes.repeats)
    return [
        Line(
            f"block shuffle {name} / numpy map",
            f"{name}: cache[rows] of a block shuffle {WINDOW[0]}x{WINDOW[1]}, against numpy's map"
            " of float16",
            seen[name],
            against=seen["numpy"],
        )
        for name in stores.caches
    ]


def _walk(source, orders: list[list[np.ndarray]]):
    def run(repeat: int) -> None:
        for rows in orders[repeat]:
            source[rows]

    return run
