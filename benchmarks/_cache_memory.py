"""Memory and opening time, each in a process of its own.

    python -m benchmarks._cache_memory {read,write,open} FOLDER [ROWS DIM]

prints one line of JSON. A thread reads /proc/self/status every few milliseconds and keeps the
highest figures.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks._cache_data import BLOCK, Sizes, cut, header, made, names
from benchmarks._timing import Line

GATHERS, BATCH, SPAN = 2000, 640, 4096
MOST = 2_000_000  # rows of the largest cache
# MB: RESIDENT of dimefm/cache/reader.py (1 GiB) and 2.5 % for pages that lie across two windows
BOUND = 1100.0
CODE = 128.0  # MB: Python, numpy and the buffers of one call
FIELDS = ("VmRSS", "RssAnon", "RssFile", "VmHWM")


def status() -> dict[str, float]:
    """Return resident memory in MB: all, anonymous, of files, and the highest so far."""
    text = Path("/proc/self/status").read_text()
    return {name: int(re.search(rf"{name}:\s*(\d+) kB", text)[1]) * 1024 / 1e6 for name in FIELDS}


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Fill a dict with the highest figures seen until the block ends; ``before`` and ``seconds``
    too.
    """
    before, stop = status(), threading.Event()
    found = dict(before)

    def watch() -> None:
        while not stop.wait(0.004):
            for name, value in status().items():
                found[name] = max(found[name], value)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    started = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - started
    stop.set()
    thread.join()
    found["before"] = before["VmRSS"]


def read(root: Path) -> dict[str, float]:
    """Make 2,000 random gathers of 640 rows and a pass over all rows."""
    from dimefm.cache import FeatureCache

    with watched() as found:
        cache, random = FeatureCache(root), np.random.default_rng(0)
        started = time.perf_counter()
        for _ in range(GATHERS):
            cache[random.integers(0, len(cache), BATCH)]
        found["rate"] = GATHERS * BATCH / (time.perf_counter() - started)
        for start in range(0, len(cache), SPAN):
            cache[start : start + SPAN]
    return found


def create(root: Path, rows: int, dim: int, shards: int) -> dict[str, float]:
    """Write a cache in portions through the spool; the rows are one block, turned, so that making
    them takes nothing.
    """
    from dimefm.cache import CacheWriter

    block, parts = made(BLOCK, dim), cut(rows, shards)
    with watched() as found:
        writer = CacheWriter(
            root, header("hdf5", dim), [(name, stop - start) for name, start, stop in parts]
        )
        for name, start, stop in parts:
            with writer.row_buffer(name) as spool:
                for a in range(start, stop, BLOCK):
                    b = min(a + BLOCK, stop)
                    spool.add(names(a, b), block[: b - a])
                writer.write(name, spool.keys, spool.rows())
        writer.seal()
    return found


def opened(root: Path) -> dict[str, float]:
    """Open a cache after the imports; seconds, and the memory of the whole process."""
    from dimefm.cache import FeatureCache

    started = time.perf_counter()
    rows = len(FeatureCache(root))
    return {"seconds": time.perf_counter() - started, "rows": rows, **status()}


def child(what: str, root: Path, *numbers: int) -> dict[str, float]:
    """Run this module in a fresh process and return what it printed."""
    command = [sys.executable, "-m", __spec__.name, what, str(root), *map(str, numbers)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return json.loads(done.stdout)


def memory(sizes: Sizes) -> list[Line]:
    """Return peaks of reading caches of 10 k rows and more, and of writing one shard of 10 k and of
    a million rows.
    """
    counts = [min(10_000, sizes.rows), sizes.rows] + [MOST] * (not sizes.quick)
    shards = [counts[0], sizes.rows if sizes.quick else MOST // 2]
    seen, lines = {}, []
    for rows in dict.fromkeys(counts):
        root = sizes.folder / f"memory {rows}"
        child("write", root, rows, sizes.dim, max(1, rows // 100_000))
        seen[rows] = child("read", root)
        shutil.rmtree(root)
        lines += _read_lines(rows, seen[rows])
    growth = {name: seen[counts[-1]][name] - seen[counts[0]][name] for name in FIELDS}
    span = f"reading, from {counts[0]:,} to {counts[-1]:,} rows"
    lines.append(
        Line(
            "memory read growth anonymous",
            f"{span}: growth of anonymous memory",
            growth["RssAnon"],
            "MB",
            goal=("<=", 32),
        )
    )
    lines.append(
        Line(
            "memory read growth",
            f"{span}: growth of resident memory",
            growth["VmRSS"],
            "MB",
            goal=("<=", BOUND),
        )
    )
    wrote = {}
    for rows in dict.fromkeys(shards):
        root = sizes.folder / f"wrote {rows}"
        wrote[rows] = child("write", root, rows, sizes.dim, 1)
        shutil.rmtree(root)
    for label, rows in zip(("small", "large"), shards, strict=True):
        what = f"writing one shard of {rows:,} rows through the spool"
        for name, part in (("RssAnon", "anonymous"), ("RssFile", "mapped files")):
            lines.append(
                Line(
                    f"memory write {label} {part}", f"{what}: {part}, peak", wrote[rows][name], "MB"
                )
            )
    return lines


def _read_lines(rows: int, found: dict[str, float]) -> list[Line]:
    what = f"reading {rows:,} rows, {GATHERS:,} x {BATCH} random and all in order"
    return [
        Line(
            f"memory read {rows} peak",
            f"{what}: resident, peak",
            found["VmHWM"],
            "MB",
            goal=("<=", BOUND + CODE),
        ),
        Line(
            f"memory read {rows} anonymous",
            f"{what}: anonymous, peak",
            found["RssAnon"],
            "MB",
            goal=("<=", CODE),
        ),
        Line(f"memory read {rows} files", f"{what}: mapped files, peak", found["RssFile"], "MB"),
        Line(
            f"memory read {rows} gathers",
            f"{what}: the random rows of it, with sampling",
            found["rate"],
        ),
    ]


def opening(sizes: Sizes) -> list[Line]:
    """Return time and memory of opening 100 million rows in 10,000 shards, whole and with 1 % of
    the rows quarantined.
    """
    from dimefm.cache import Manifest

    shards, rows = (1000 if sizes.quick else 10_000), 10_000
    lines = []
    for bad, label in ((0, "none bad"), (rows // 100, "1 % bad")):
        root = sizes.folder / f"open {bad}"
        root.mkdir()
        (root / "manifest.json").write_text(
            _simulated(header("hdf5", sizes.dim), shards, rows, bad), encoding="utf-8"
        )
        assert len(Manifest.read(root).shards) == shards
        seen = [child("open", root) for _ in range(min(sizes.repeats, 5))]
        size = (root / "manifest.json").stat().st_size / 1e6
        what = (
            f"opening {shards * rows / 1e6:,.0f} M rows in {shards:,} shards, {label}, manifest"
            f" {size:.1f} MB"
        )
        seconds, peak = (
            statistics.median(each[name] for each in seen) for name in ("seconds", "VmHWM")
        )
        lines.append(Line(f"open {label} seconds", what, seconds, "s", goal=("<=", 1.0)))
        lines.append(
            Line(f"open {label} memory", f"{what}: process, peak", peak, "MB", goal=("<=", 100.0))
        )
    return lines


def _simulated(head, shards: int, rows: int, bad: int) -> str:
    """Return the manifest of a cache whose shards are not there."""
    import dataclasses
    import hashlib

    from dimefm.cache import ShardInfo

    random, found = np.random.default_rng(0), []
    for number in range(shards):
        proof = [hashlib.sha256(b"%d %d" % (number, i)).hexdigest() for i in range(3)]
        out = tuple(sorted(random.choice(rows, bad, replace=False).tolist()))
        left = rows - bad
        place = f"part_{number:05d}"
        size = left * head.dim * 2 + 4096
        found.append(
            ShardInfo(
                f"{place}.feat.h5", f"{place}.tar", rows, left, out, size, *proof, offset=4096
            )
        )
    return dataclasses.replace(head, shards=tuple(found)).to_json()


if __name__ == "__main__":
    name, folder, *rest = sys.argv[1:]
    run = {"read": read, "write": create, "open": opened}[name]
    print(json.dumps(run(Path(folder), *map(int, rest))))
