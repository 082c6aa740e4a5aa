"""How long extraction, training and the commands for caches take to start with many shards.

    python -m benchmarks.many_shards [--shards 40000] [--rows 250] [--dim 8] [--folder FOLDER]
    [--out results.jsonl]

Text files of ``--rows`` lines and two caches of them are made first, which takes minutes and
one file a shard and cache. Each step then runs once in this process; its seconds of wall time and
of CPU, and the memory that it added, are printed. Forcing files to the disk is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks._timing import Line, machine, record, table
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.data import Rows, open_rows
from dimefm.data.alignment import align, align_caches

PER_FOLDER = 1000  # shards
BATCH = 1024  # rows of a gather


def names(shards: int) -> list[str]:
    """Return the names of the shards, in folders of 1,000."""
    return [f"{number // PER_FOLDER:03d}/{number:06d}.txt" for number in range(shards)]


def write_texts(folder: Path, shards: int, rows: int) -> None:
    """Write a text file of ``rows`` sentences for each shard."""
    for number, name in enumerate(names(shards)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"a photo of thing {row} of {number}\n" for row in range(rows)))


def write_cache(folder: Path, raw: Rows, kind: str, dim: int) -> Manifest:
    """Write a cache of random directions for the rows of ``raw``; return its header."""
    card = EncoderCard("made", None, dim, 100.0)
    header = Manifest(kind, "hdf5", "float16", dim, True, card, {}, {})
    sources = [(shard.name, len(shard)) for shard in raw.shards]
    digests = {shard.name: shard.digest() for shard in raw.shards}
    random = np.random.default_rng(0)
    writer = CacheWriter(folder, header, sources, digests)
    for name, count in sources:
        rows = random.standard_normal((count, dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        writer.write(name, [str(row) for row in range(count)], rows)
    writer.seal()
    return header


class Steps:
    """Runs steps and keeps a line for the seconds and the memory of each."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def run(self, name: str, step: Callable):
        """Run a step and return its value."""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall = time.perf_counter()
        cpu = time.process_time()
        value = step()
        cpu = time.process_time() - cpu
        wall = time.perf_counter() - wall
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 / 1e6
        self.lines.append(Line(f"start {name} CPU", f"{name}, CPU", cpu, "s"))
        self.lines.append(Line(f"start {name} wall", f"{name}, wall", wall, "s"))
        self.lines.append(Line(f"start {name} memory", f"{name}, memory", added, "MB"))
        return value


def measure(root: Path, header: Manifest) -> list[Line]:
    """Return a line for each step of a start."""
    steps = Steps()
    pattern = [root / "raw/*/*.txt"]
    cache = steps.run("open a cache", lambda: FeatureCache(root / "texts"))
    steps.run("verify the sizes", cache.verify)
    raw = steps.run("open the sources", lambda: open_rows(pattern, "text", dataroot=root / "raw"))
    sources = [(shard.name, len(shard)) for shard in raw.shards]

    def resume() -> None:
        digests = {shard.name: shard.digest() for shard in raw.shards}
        writer = CacheWriter(root / "texts", dataclasses.replace(header), sources, digests)
        if writer.finished is None:
            raise RuntimeError("the cache is not finished")

    steps.run("resume a finished extraction", resume)
    images = FeatureCache(root / "images")
    aligned = steps.run("match sources and cache", lambda: align(raw, cache))
    steps.run("match two caches", lambda: align_caches(cache, images))

    def gather() -> None:
        for usable in batches(len(aligned), 10):
            _, rows = aligned.locate(usable)
            cache[rows[0]]

    steps.run(f"10 batches of {BATCH:,} random rows", gather)
    return steps.lines


def batches(rows: int, count: int) -> Iterator[np.ndarray]:
    """Yield batches of random row numbers."""
    random = np.random.default_rng(1)
    for _ in range(count):
        yield random.integers(0, rows, BATCH)


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=40_000)
    parser.add_argument("--rows", type=int, default=250, help="rows of a shard")
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are appended to")
    options = parser.parse_args()
    os.fsync = lambda descriptor: None
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-", dir=options.folder) as folder:
        root = Path(folder)
        write_texts(root / "raw", options.shards, options.rows)
        raw = open_rows([root / "raw/*/*.txt"], "text", dataroot=root / "raw")
        write_cache(root / "images", raw, "image", options.dim)
        header = write_cache(root / "texts", raw, "text", options.dim)
        del raw
        place = machine(root)
        title = f"Start with {options.shards:,} shards of {options.rows:,} rows"
        found = [(title, measure(root, header))]
    print("  ".join(f"{name} {value}" for name, value in place.items()))
    print(table(found))
    if options.out:
        settings = {"shards": options.shards, "rows": options.rows, "dim": options.dim}
        record(options.out, "many_shards", settings, found, place)


if __name__ == "__main__":
    main()
