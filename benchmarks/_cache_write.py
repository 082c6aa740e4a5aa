"""Writing a cache from rows in memory to durable files, against the raw bytes in as many files with
as many fsyncs.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks._cache_data import Sizes, cut, header, made, names, spooled, write
from benchmarks._timing import Line, Work, interleaved
from dimefm.storage.files import commit

SHARDS = 10
GOAL = (">=", 0.5)


def writes(sizes: Sizes) -> list[Line]:
    """Time whole caches of ten shards: keys, SHA-256, fsyncs of files and folders, records and
    manifest included.
    """
    rows, keys = made(sizes.rows, sizes.dim), names(0, sizes.rows)
    coarse = np.clip(np.rint(rows.astype(np.float32) * 1000), -127, 127).astype(np.int8)
    made_so = {
        name: functools.partial(write, head=header(name, sizes.dim), rows=rows)
        for name in ("hdf5", "parquet", "tsv")
    }
    made_so["spool"] = functools.partial(spooled, head=header("hdf5", sizes.dim), rows=rows)
    commits = _fsyncs(sizes.folder / "counted", made_so["hdf5"], keys)
    works = {}
    for name, save in made_so.items():
        root = sizes.folder / f"written {name}"
        works[name] = Work(
            functools.partial(_ours, save, root, keys),
            sizes.rows,
            functools.partial(shutil.rmtree, root),
        )
    for dtype, source in (("float16", rows), ("int8", coarse)):
        root = sizes.folder / f"plain {dtype}"
        run = functools.partial(_plain, root, source, commits)
        works[f"plain {dtype}"] = Work(run, sizes.rows, functools.partial(shutil.rmtree, root))
    seen = interleaved(works, sizes.repeats)
    notes = {
        "hdf5": "hdf5: CacheWriter, float16",
        "spool": "hdf5: the same through the spool, portions of 256 rows",
        "parquet": "parquet: CacheWriter, float16, byte-stream-split and zstd",
        "tsv": "tsv: CacheWriter, base64 of float32, 2.7 times the bytes",
    }
    against = f", against raw bytes with {commits} fsync pairs"
    lines = []
    for name, note in notes.items():
        goal = GOAL if name in ("hdf5", "parquet") else None
        lines.append(
            Line(
                f"write {name} / raw files",
                note + against,
                seen[name],
                against=seen["plain float16"],
                goal=goal,
            )
        )
    what = "raw bytes of int8 rows, for scale"
    return [
        *lines,
        Line("write raw int8 / raw files", what, seen["plain int8"], against=seen["plain float16"]),
    ]


def _ours(save: Callable, root: Path, keys: list[str], _: int) -> None:
    save(root, keys=keys, shards=SHARDS)


def _fsyncs(root: Path, save: Callable, keys: list[str]) -> int:
    """Return how many files one write commits, each with an fsync of the file and one of its
    folder.
    """
    with mock.patch.object(os, "fsync", wraps=os.fsync) as counted:
        save(root, keys=keys, shards=SHARDS)
    shutil.rmtree(root)
    return counted.call_count // 2


def _plain(root: Path, rows: np.ndarray, commits: int, _: int) -> None:
    """Write the rows to ten files and ``commits - 10`` empty ones, each durable."""
    root.mkdir()
    parts = [rows[start:stop] for _, start, stop in cut(len(rows), SHARDS)]
    for number in range(max(commits, len(parts))):
        part = root / f"{number}.part"
        with part.open("wb", buffering=0) as file:
            if number < len(parts):
                _all(file, memoryview(parts[number]).cast("B"))
        commit(part, root / f"{number}.bin")


def _all(file, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done : done + (1 << 22)])
