"""Ways to store rows that this cache does not take, timed beside the one it does."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._cache_data import Sizes, header, made, names, write
from benchmarks._timing import Line, Work, interleaved
from dimefm.cache import FeatureCache

ROWS = 50_000  # at most
GROUP = 1024  # rows of a row group or chunk
FEW = 16  # random rows read the slow way in a round


def pitfalls(sizes: Sizes) -> list[Line]:
    """Time Parquet columns of lists and of binary, random rows from row groups, and gzip chunks of
    HDF5.
    """
    count = min(sizes.rows, ROWS)
    rows, folder = made(count, sizes.dim), sizes.folder
    caches = {name: folder / f"pitfall {name}" for name in ("hdf5", "parquet")}
    for name, root in caches.items():
        write(root, header(name, sizes.dim), rows, names(0, count))
    ours = {name: FeatureCache(root) for name, root in caches.items()}
    lists, binary, chunked = (
        _parquet(folder, rows, True),
        _parquet(folder, rows, False),
        _chunked(folder, rows),
    )
    wanted = np.random.default_rng(2).integers(0, count, (sizes.repeats + 1, 640))
    with (
        h5py.File(chunked) as other,
        h5py.File(caches["hdf5"] / ours["hdf5"].manifest.shards[0].file) as same,
    ):
        works = {
            "list": Work(lambda _: _lists(lists), count),
            "binary": Work(lambda _: _binary(binary, sizes.dim), count),
            "ours": Work(
                lambda _: list(ours["parquet"].blocks(ours["parquet"].manifest.shards[0])), count
            ),
            "random list": _random(lists, wanted),
            "random binary": _random(binary, wanted),
            "flat": Work(lambda r: ours["parquet"][wanted[r]], wanted.shape[1]),
            "h5 gzip": Work(lambda r: [other["row"][int(row)] for row in wanted[r][:FEW]], FEW),
            "h5 contiguous": Work(
                lambda r: [same["row"][int(row)] for row in wanted[r]], wanted.shape[1]
            ),
            "hdf5": Work(lambda r: ours["hdf5"][wanted[r]], wanted.shape[1]),
        }
        seen = interleaved(works, sizes.repeats)
    table = (
        (
            "parquet: fixed-size list read whole (plain, no zstd), against fixed-size binary",
            "list",
            "binary",
        ),
        (
            "parquet: our shard read whole (split, zstd, keys), against fixed-size binary",
            "ours",
            "binary",
        ),
        (
            "parquet: random rows from our flat copy, against row groups of lists",
            "flat",
            "random list",
        ),
        (
            "parquet: random rows from our flat copy, against row groups of binary",
            "flat",
            "random binary",
        ),
        (
            "hdf5: random rows of our shard's map, against h5py on the same contiguous rows",
            "hdf5",
            "h5 contiguous",
        ),
        ("hdf5: random rows of our shard's map, against h5py on gzip chunks", "hdf5", "h5 gzip"),
    )
    return [Line(f"pitfall {a} / {b}", what, seen[a], against=seen[b]) for what, a, b in table]


def _parquet(folder: Path, rows: np.ndarray, as_list: bool) -> Path:
    """Write rows as fixed-size lists or fixed-size binary, uncompressed, in row groups of 1024."""
    path = folder / ("list.parquet" if as_list else "binary.parquet")
    if as_list:
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    else:
        data = pa.py_buffer(rows.tobytes())
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(rows.shape[1] * 2), len(rows), [None, data]
        )
    pq.write_table(
        pa.table({"row": column}),
        path,
        row_group_size=GROUP,
        compression="none",
        use_dictionary=False,
    )
    return path


def _chunked(folder: Path, rows: np.ndarray) -> Path:
    path = folder / "chunked.h5"
    with h5py.File(path, "w") as file:
        chunks = (min(GROUP, len(rows)), rows.shape[1])
        file.create_dataset("row", data=rows, chunks=chunks, compression="gzip", compression_opts=1)
    return path


def _lists(path: Path) -> None:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group).column("row").combine_chunks().flatten().to_numpy(
                zero_copy_only=False
            )


def _binary(path: Path, dim: int) -> None:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            column = file.read_row_group(group).column("row").combine_chunks()
            np.frombuffer(column.buffers()[1], dtype=np.float16).reshape(-1, dim)


def _random(path: Path, wanted: np.ndarray) -> Work:
    """Return the work of reading a few random rows, each from the row group that holds it."""

    def run(repeat: int) -> None:
        with pq.ParquetFile(path) as file:
            for row in wanted[repeat][:FEW]:
                file.read_row_group(int(row) // GROUP).column("row")[int(row) % GROUP].as_py()

    return Work(run, FEW)
