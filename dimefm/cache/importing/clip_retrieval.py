"""The output folder of clip-retrieval: ``.npy`` files of embeddings and Parquet files of metadata.

The files are ``img_emb/img_emb_N.npy``, ``text_emb/text_emb_N.npy`` and
``metadata/metadata_N.parquet``. N is the number of a partition, with or without leading zeros; a
partition without rows has no files. The metadata has a row for each vector, with ``image_path``
when images were encoded. Source: clip-retrieval, clip_inference/writer.py (OutputSink).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dimefm.cache.importing.arrays import map_npy
from dimefm.cache.importing.tables import keys_of_column
from dimefm.cache.importing.vectors import (
    ROW_NUMBERS,
    Vectors,
    check_count,
    refused,
    row_numbers,
)
from dimefm.errors import CacheError
from dimefm.runtime.text import first_few

FOLDERS = {"image": "img_emb", "text": "text_emb"}  # kind -> folder, also the prefix of its files
KEY_COLUMNS = ("image_path", "key")  # in order of preference


def open_partitions(folder: Path, kind: str, column: str | None = None) -> list[Vectors]:
    """Open the partitions of ``kind`` in the order of their numbers.

    The keys are those of ``column`` of the metadata; without it ``image_path``, else ``key``, else
    row numbers. Raises CacheError when there are no vectors of this kind, a partition lacks its
    metadata, or the metadata has another number of rows or lacks the column.
    """
    prefix = FOLDERS[kind]
    files = _numbered(folder / prefix, prefix, "npy")
    tables = _numbered(folder / "metadata", "metadata", "parquet")
    if not files:
        other_kind = "text" if kind == "image" else "image"
        raise CacheError(
            f"{folder}: no {prefix}_N.npy in {prefix}/. Fix: use --kind {other_kind}, if that is"
            " meant"
        )
    partitions = []
    for number, path in files.items():
        if number not in tables:
            raise CacheError(
                f"{path}: metadata/metadata_{number}.parquet is missing, which has its keys."
                " Fix: restore it, or adopt the .npy files by themselves"
            )
        partitions.append(_partition(path, tables[number], column))
    return partitions


def _numbered(folder: Path, prefix: str, ending: str) -> dict[int, Path]:
    """Return partition number -> file, in the order of the numbers."""
    files: dict[int, Path] = {}
    for path in sorted(folder.glob(f"*.{ending}")):
        match = re.fullmatch(rf"{prefix}_(\d+)\.{ending}", path.name)
        if match is None:
            continue
        number = int(match[1])
        if number in files:
            raise CacheError(
                f"{path}: another file has this partition's number too. Fix: remove the one that"
                " does not belong here"
            )
        files[number] = path
    return dict(sorted(files.items()))


def _partition(path: Path, table: Path, column: str | None) -> Vectors:
    rows = map_npy(path)
    count, columns = _rows_and_columns(table)
    check_count(path, len(rows), count, table)
    if column is not None and column not in columns:
        raise CacheError(
            f"{table}: there is no column {column}; it has {first_few(columns, 8)}. Fix: name one"
            " of them with --key-column"
        )
    key_column = column or _default_key_column(columns)
    named_by = ROW_NUMBERS
    if key_column is not None:
        named_by = f"column {key_column} of the metadata"

    def read(start: int, stop: int) -> tuple[list[str], np.ndarray]:
        if key_column is None:
            keys = row_numbers(start, stop)
        else:
            keys = keys_of_column(table, key_column)[start:stop]
        return keys, map_npy(path)[start:stop]

    return Vectors(
        path=path,
        form="clip-retrieval",
        count=len(rows),
        dim=rows.shape[1],
        dtype=rows.dtype.name,
        read=read,
        named_by=named_by,
        key_files=(table,),
    )


def _default_key_column(columns: list[str]) -> str | None:
    for name in KEY_COLUMNS:
        if name in columns:
            return name
    return None


def _rows_and_columns(path: Path) -> tuple[int, list[str]]:
    """Return the number of rows and the names of the columns of a Parquet file."""
    import pyarrow.parquet as pq

    with refused(path, "not a whole Parquet file", "fetch or write it again"):
        with pq.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow.names
