"""clip-retrieval's output folder: ``img_emb/img_emb_N.npy``, ``text_emb/text_emb_N.npy``,
``metadata/metadata_N.parquet``.

N numbers a partition, padded with zeros or not, and a partition without rows has no files. The
metadata has a row for each vector, with ``image_path`` when images were encoded. Source:
clip-retrieval, clip_inference/writer.py (OutputSink).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dimefm.cache.importing.arrays import map_npy
from dimefm.cache.importing.vectors import (
    ROW_NUMBERS,
    Vectors,
    check_count,
    first_line,
    row_numbers,
)
from dimefm.errors import CacheError

FOLDERS = {"image": "img_emb", "text": "text_emb"}  # kind -> folder, and how its files begin
KEY_COLUMNS = ("image_path", "key")  # in order of preference


def open_partitions(folder: Path, kind: str, column: str | None = None) -> list[Vectors]:
    """Open the partitions of ``kind`` in the order of their numbers; keys are those of ``column``
    of the metadata.

    Without ``column`` they are ``image_path``, else ``key``, else row numbers. Raises CacheError
    when there are no vectors of this kind, a partition lacks its metadata, or the metadata has
    another number of rows or lacks the column.
    """
    files = _numbered(folder / FOLDERS[kind], FOLDERS[kind], "npy")
    tables = _numbered(folder / "metadata", "metadata", "parquet")
    if not files:
        other = next(there for there in FOLDERS if there != kind)
        raise CacheError(
            f"{folder}: no {FOLDERS[kind]}_N.npy in {FOLDERS[kind]}/; did you mean --kind {other}?"
        )
    lost = next((number for number in files if number not in tables), None)
    if lost is not None:
        raise CacheError(
            f"{files[lost]}: metadata/metadata_{lost}.parquet is missing, which has its keys;"
            " restore it, or adopt the .npy files by themselves"
        )
    return [_partition(path, tables[number], column) for number, path in files.items()]


def _numbered(folder: Path, begin: str, ending: str) -> dict[int, Path]:
    """Return partition number -> file, in the order of the numbers."""
    matches = (
        (re.fullmatch(rf"{begin}_(\d+)\.{ending}", path.name), path)
        for path in folder.glob(f"*.{ending}")
    )
    found = sorted((int(match[1]), path) for match, path in matches if match)
    twice = next((b for (i, _), (j, b) in zip(found, found[1:], strict=False) if i == j), None)
    if twice is not None:
        raise CacheError(
            f"{twice}: another file has this partition's number too; remove the one that does not"
            " belong here"
        )
    return dict(found)


def _partition(path: Path, table: Path, column: str | None) -> Vectors:
    rows = map_npy(path)
    count, columns = _described(table)
    check_count(path, len(rows), count, table)
    if column is not None and column not in columns:
        raise CacheError(f"{table}: there is no column {column}; it has {', '.join(columns)}")
    chosen = column or next((name for name in KEY_COLUMNS if name in columns), None)

    def read(start: int, stop: int) -> tuple[list[str], np.ndarray]:
        keys = row_numbers(start, stop) if chosen is None else _column(table, chosen)[start:stop]
        return keys, map_npy(path)[start:stop]

    named_by = f"column {chosen} of the metadata" if chosen else ROW_NUMBERS
    return Vectors(
        path, "clip-retrieval", len(rows), rows.shape[1], rows.dtype.name, read, named_by, (table,)
    )


def _described(path: Path) -> tuple[int, list[str]]:
    """Return (rows, names of columns) of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise CacheError(
            f"{path}: not a whole Parquet file ({first_line(error)}); fetch or write it again"
        ) from error


def _column(path: Path, name: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            values = file.read([name]).column(name).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CacheError(
            f"{path}, column {name}: cannot be read ({first_line(error)}); write it again"
        ) from error
    empty = next((row for row, value in enumerate(values) if value is None), None)
    if empty is not None:
        raise CacheError(
            f"{path}, row {empty}: {name} is empty, so there is no key; choose another --key-column"
        )
    return [str(value) for value in values]
