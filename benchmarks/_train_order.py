"""Dealing rows: rows a second by the number of rows, and reading Parquet's images row by row and
block by block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._timing import Line, Work, interleaved
from dimefm.data import Rows, open_rows
from dimefm.data.formats import parquet
from dimefm.train.inputs.sampler import Order, Shuffled, ShuffledBlocks, Spans, WeightedOrder

BATCH, TAKES = 640, 50
SIZES = (
    10_000,
    160_000,
    2_560_000,
    10_240_000,
)  # as far below a power of 4 each: a permutation walks over what is above
WORST = 4**11 + 1
GROUP, WINDOW = 1000, 16
NAMES = {
    "rows": "shuffled rows",
    "blocks": "blocks of 1000 rows, 16 at a time",
    "mix": "a mix of 0.7 and 0.3 of two halves",
}
IMAGE = 40_000  # bytes
FEW = 30  # random rows read the slow way in a round


def dealt(repeats: int) -> list[Line]:
    """Time batches of BATCH rows at scattered positions, from sources of 10 k to 10 M rows; nothing
    is read.

    The number of rows matters by its distance to the next power of 4 alone, at most by a factor of
    4: see WORST.
    """
    found = []
    for name, what in NAMES.items():
        sizes = (*SIZES, WORST) if name == "rows" else SIZES
        works = {str(n): _takes(_order(name, n), n) for n in sizes}
        seen = interleaved(works, repeats)
        first = seen[str(SIZES[0])]
        found.append(Line(f"order {name} {SIZES[0]}", f"{what}, of {SIZES[0]:,}", first))
        for n in sizes[1:]:
            shown, least = f"{what}, of {n:,}, against of {SIZES[0]:,}", 0.2 if n == WORST else 0.8
            found.append(
                Line(f"order {name} {n}", shown, seen[str(n)], against=first, goal=(">=", least))
            )
    return found


def _order(name: str, n: int) -> Order:
    if name == "rows":
        return Shuffled(n, 0, "images")
    if name == "blocks":
        return ShuffledBlocks(
            Spans.from_sizes(np.arange(0, n, GROUP), np.full(n // GROUP, GROUP)),
            WINDOW,
            0,
            "images",
        )
    halves = [
        Shuffled(Spans.from_sizes([start], [n // 2]), 0, f"images/{start}") for start in (0, n // 2)
    ]
    return WeightedOrder(halves, [0.7, 0.3], 0, "images")


def _takes(order: Order, n: int) -> Work:
    """Take batches from places all over the first epoch."""
    places = np.random.default_rng(1).integers(0, max(1, n - BATCH), TAKES).tolist()
    return Work(lambda _: [order.take(place, BATCH) for place in places], BATCH * TAKES)


def read(folder: Path, repeats: int, images: int = 20_000) -> list[Line]:
    """Time reading images of 40 kB from Parquet in row groups of 1000, of which a fifth stays in
    memory: in shuffled order and in blocks."""
    path = folder / "images.parquet"
    _write(path, images)
    window = max(2, images // GROUP // 20)
    blocks = ShuffledBlocks(
        Spans.from_sizes(np.arange(0, images, GROUP), np.full(images // GROUP, GROUP)),
        window,
        0,
        "images",
    )
    orders: dict[str, Order] = {"rows": Shuffled(images, 0, "images"), "blocks": blocks}
    with _memory(images * IMAGE // 5):
        rows = open_rows([path], "image")
        works = {
            name: _reads(rows, order, FEW if name == "rows" else 2 * GROUP)
            for name, order in orders.items()
        }
        seen = interleaved(works, repeats)
    path.unlink()
    what = "Parquet, row groups of 1000 images: in blocks, against shuffled rows"
    return [
        Line(
            "order parquet blocks / rows",
            what,
            seen["blocks"],
            against=seen["rows"],
            goal=(">=", 10),
        )
    ]


def _write(path: Path, images: int) -> None:
    """Write random bytes in the place of images."""
    draw, schema = (
        np.random.default_rng(0),
        pa.schema([("key", pa.string()), ("image", pa.binary())]),
    )
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, images, GROUP):
            columns = {
                "key": [str(row) for row in range(start, start + GROUP)],
                "image": [draw.bytes(IMAGE) for _ in range(GROUP)],
            }
            file.write_table(pa.table(columns, schema=schema), row_group_size=GROUP)


@contextlib.contextmanager
def _memory(size: int) -> Iterator[None]:
    """Let row groups of ``size`` bytes stay in memory."""
    before, parquet.BYTES_KEPT = parquet.BYTES_KEPT, size
    try:
        yield
    finally:
        parquet.BYTES_KEPT = before


def _reads(rows: Rows, order: Order, count: int) -> Work:
    """Read the next ``count`` rows of an order in each round."""
    return Work(
        lambda repeat: [rows[row] for row in order.take(repeat * count, count)[0].tolist()], count
    )
