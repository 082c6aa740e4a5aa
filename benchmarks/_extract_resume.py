"""What it costs to start an extraction again that has finished: a cache of 1,000 shards."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks._extract_data import Sizes, captions, jpeg, tar_of, written
from benchmarks._extract_models import TINY
from benchmarks._timing import Line
from dimefm.data import open_rows
from dimefm.extract.extract import Settings, extract
from dimefm.models.loading import load_encoder

GOAL = ("<=", 2.0)
ROWS = 2  # rows of a shard


def resume(sizes: Sizes) -> list[Line]:
    """Return seconds of a rerun over sentences and over images, in this process and as a
    command.
    """
    encoder, lines = load_encoder(TINY, "cpu"), []
    for kind, make, ending in (("text", _texts, ".txt"), ("image", _tars, ".tar")):
        folder, out = sizes.folder / f"resume {kind}", sizes.folder / f"resumed {kind}"
        folder.mkdir()
        make(folder, sizes)
        sources = f"{folder}/*{ending}"
        command = [
            sys.executable,
            "-m",
            "dimefm",
            "extract-features",
            "--teacher",
            TINY,
            "--device",
            "cpu",
            "--out",
            str(out),
        ]
        command += [f"--{kind}s", sources]
        first = _seconds(lambda command=command: _run(command))

        def again(sources=sources, kind=kind, out=out) -> None:
            report = extract(
                encoder,
                open_rows([sources], kind),
                kind,
                out / f"{kind}s",
                Settings(progress=False),
            )
            assert report.already_finished, report.describe()

        inside = statistics.median([_seconds(again) for _ in range(max(3, sizes.repeats))])
        whole = statistics.median(
            [_seconds(lambda command=command: _run(command)) for _ in range(sizes.repeats)]
        )
        what = f"{sizes.shards:,} shards of {kind}s"
        lines += [
            Line(
                f"resume {kind}s",
                f"{what}: a rerun of the finished extraction, in process",
                inside,
                "s",
                goal=GOAL,
            ),
            Line(
                f"resume {kind}s command",
                f"{what}: the same as a command, with its imports and its teacher",
                whole,
                "s",
            ),
            Line(f"resume {kind}s first", f"{what}: the first run, as a command", first, "s"),
        ]
    return lines


def _texts(folder: Path, sizes: Sizes) -> None:
    found = captions(sizes.data, 0, ROWS * sizes.shards)
    for number in range(sizes.shards):
        written(found[ROWS * number : ROWS * (number + 1)], folder / f"{number:05d}.txt")


def _tars(folder: Path, sizes: Sizes) -> None:
    from PIL import Image

    for number in range(ROWS * sizes.shards):
        colour = (number % 251, number // 251 % 251, 99)
        (folder / f"{number:06d}.jpg").write_bytes(jpeg(Image.new("RGB", (64, 48), colour)))
    for number in range(sizes.shards):
        files = [folder / f"{row:06d}.jpg" for row in range(ROWS * number, ROWS * (number + 1))]
        tar_of(files, folder / f"{number:05d}.tar")


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
