"""Resident memory over the shards of one extraction, in a process of its own.

    python -m benchmarks._extract_memory {image,text} OUT BATCH SOURCE...

prints one line of JSON: MiB after the first 20 shards and after the last, and the peak. A thread
looks at the number of shards in the cache and at /proc/self/status; a figure is the highest while
ten shards were made, so that it does not hang on a moment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from benchmarks._extract_data import Photos, Sizes, captions, tar_of, written
from benchmarks._timing import Line

EARLY, SPAN = 20, 10
GROWTH = ("<=", 16.0)  # MiB that one batch more or less in flight makes
IMAGES, SENTENCES = 64, 256  # rows of a shard


def resident(field: str = "VmRSS") -> float:
    """Return resident memory of this process in MiB."""
    return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def watch(kind: str, out: Path, batch: int, sources: list[str]) -> dict[str, float]:
    """Extract with a tiny encoder and return what it held."""
    from benchmarks._extract_models import TINY
    from dimefm.data import open_rows
    from dimefm.extract.extract import Settings, extract
    from dimefm.models.loading import load_encoder

    encoder, rows, stop, seen = (
        load_encoder(TINY, "cpu"),
        open_rows(sources, kind),
        threading.Event(),
        dict[int, float](),
    )

    def look() -> None:
        while not stop.wait(0.01):
            done = sum(name.endswith(".h5") for name in os.listdir(out)) if out.is_dir() else 0
            seen[done] = max(seen.get(done, 0.0), resident())

    before = resident()
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    extract(encoder, rows, kind, out, Settings(batch_size=batch, progress=False))
    stop.set()
    thread.join()
    last = len(rows.shards)
    early = min(EARLY, last // 2)
    return {
        "before": before,
        "early": max(value for done, value in seen.items() if early - SPAN < done <= early),
        "late": max(value for done, value in seen.items() if last - SPAN < done <= last),
        "peak": resident("VmHWM"),
    }


def memory(sizes: Sizes, photos: Photos) -> list[Line]:
    """Return MiB after 20 shards and after 200, growth and peak, of images and of sentences."""
    shards, lines = max(2, sizes.shards // 5), []
    for kind, make in (("image", _tars), ("text", _texts)):
        sources = make(sizes, photos, shards)
        arguments = [
            kind,
            str(sizes.folder / f"memory {kind}"),
            str(sizes.batch),
            *map(str, sources),
        ]
        command = [sys.executable, "-m", __spec__.name, *arguments]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(command[:6])} ended with {done.returncode}:"
                f" {done.stderr.strip()[-500:]}"
            )
        found = json.loads(done.stdout)
        what = f"{shards} shards of {kind}s, resident"
        early = min(EARLY, shards // 2)
        lines += [
            Line(
                f"memory {kind}s before",
                f"{what}: torch and a tiny teacher loaded",
                found["before"],
                "MiB",
            ),
            Line(f"memory {kind}s early", f"{what}: after {early} shards", found["early"], "MiB"),
            Line(f"memory {kind}s late", f"{what}: after {shards} shards", found["late"], "MiB"),
            Line(
                f"memory {kind}s growth",
                f"{what}: growth in between",
                found["late"] - found["early"],
                "MiB",
                goal=GROWTH,
            ),
            Line(f"memory {kind}s peak", f"{what}: peak of the process", found["peak"], "MiB"),
        ]
    return lines


def _tars(sizes: Sizes, photos: Photos, shards: int) -> list[Path]:
    """Return tars of photos, all links to one."""
    folder = sizes.folder / "memory tars"
    folder.mkdir()
    tar_of(photos.files(photos.every)[:IMAGES], folder / "00000.tar")
    for number in range(1, shards):
        os.link(folder / "00000.tar", folder / f"{number:05d}.tar")
    return sorted(folder.iterdir())


def _texts(sizes: Sizes, photos: Photos, shards: int) -> list[Path]:
    folder = sizes.folder / "memory texts"
    folder.mkdir()
    found = captions(sizes.data, 0, shards * SENTENCES)
    parts = (found[number * SENTENCES : (number + 1) * SENTENCES] for number in range(shards))
    return [written(part, folder / f"{number:05d}.txt") for number, part in enumerate(parts)]


if __name__ == "__main__":
    kind, out, batch, *sources = sys.argv[1:]
    print(json.dumps(watch(kind, Path(out), int(batch), sources)))
