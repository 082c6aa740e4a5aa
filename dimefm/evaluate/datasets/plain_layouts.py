"""Rows and class numbers of one split in the plain layouts: image folders, Parquet and webdataset
tar.

Each layout is a pair ``locate(folder, words) -> paths`` (empty when the split is not there) and
``read(folder, paths, benchmark) -> (rows, labels, remark)``, where labels are int64 [n], or 0/1 [n,
C] for a multi-label benchmark.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.data import Columns, Rows, open_rows
from dimefm.data.columns import USUAL
from dimefm.data.formats.folder import IMAGE_SUFFIXES
from dimefm.data.formats.tar import TarShard
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.datasets import labels

SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")

Split = tuple[Rows, np.ndarray, str]


def locate_folders(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return ``<split>/`` when it holds class folders; for test also the dataset's folder, if it
    has no splits.
    """
    for word in words:
        if _class_folders(folder / word):
            return [folder / word]
    unsplit = not any((folder / word).is_dir() for word in SPLIT_FOLDERS)
    return [folder] if "test" in words and unsplit and _class_folders(folder) else []


def read_folders(folder: Path, paths: list[Path], benchmark: Benchmark) -> Split:
    """Read ``<class>/<image>`` below one folder; class folders map by name, or by number when all
    are numbers.
    """
    path = paths[0]
    if benchmark.multilabel:
        raise DataError(
            f"{path}: {benchmark.name} has several labels an image, class folders one; use tar with"
            " .npy"
        )
    rows = open_rows([path], "image", dataroot=folder, input_format="folder")
    of_row = []
    for key in (key for shard in rows.shards for key in shard.keys()):
        name, slash, _ = key.partition("/")
        if not slash:
            raise DataError(
                f"{path / key}: an image outside the class folders; move it into the folder of its"
                " class"
            )
        of_row.append(name)
    found, by_number = labels.numbered(labels.Values(of_row), benchmark, str(path), folder)
    whole = "no split folders: every image is taken" if path == folder else ""
    return rows, found, "; ".join(filter(None, (whole, by_number)))


def locate_parquet(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return ``<split>.parquet``, ``<split>-*.parquet``, ``data/<split>-*.parquet`` or
    ``<split>/*.parquet``.
    """
    return _first_files(
        folder, words, ("{}.parquet", "{}-*.parquet", "data/{}-*.parquet", "{}/*.parquet")
    )


def read_parquet(folder: Path, paths: list[Path], benchmark: Benchmark) -> Split:
    """Read ``image, label`` columns; Hugging Face's class names map by name, other numbers are
    lines or card order.
    """
    try:
        schema = pq.read_schema(paths[0])
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{paths[0]}: not a readable Parquet file ({reason}); fetch it again"
        ) from error
    column = next((name for name in USUAL["label"] if name in schema.names), None)
    if column is None:
        raise DataError(
            f"{paths[0]}: no label column; expected {', '.join(USUAL['label'])}, found"
            f" {schema.names}"
        )
    columns = Columns(label=column)
    rows = open_rows(paths, "image", dataroot=folder, input_format="parquet", columns=columns)
    return rows, *labels.numbered(
        labels.values(rows.shards), benchmark, f"{paths[0]}, column '{column}'", folder
    )


def locate_tar(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return ``<split>.tar``, ``<split>-*.tar`` or ``<split>/*.tar``."""
    return _first_files(folder, words, ("{}.tar", "{}-*.tar", "{}/*.tar"))


def read_tar(folder: Path, paths: list[Path], benchmark: Benchmark) -> Split:
    """Read webdataset tars: ``.cls`` holds a class number or name, ``.npy`` a 0/1 vector [C] for a
    multi-label set.
    """
    rows = open_rows(paths, "image", dataroot=folder, input_format="tar")
    ending = "npy" if benchmark.multilabel else "cls"
    values: list[object] = []
    for shard in rows.shards:
        if not isinstance(shard, TarShard):
            raise DataError(
                f"{shard.path}: was packed for training; evaluate on the images that it was packed"
                " from"
            )
        with shard.path.open("rb") as file:
            for key, members in zip(shard.keys(), shard.members, strict=True):
                if ending not in members:
                    raise DataError(
                        f"{shard.path}: {key} has no .{ending} label; found: {', '.join(members)}"
                    )
                offset, size = members[ending]
                file.seek(offset)
                values.append(
                    _tar_label(file.read(size), f"{shard.path}: {key}.{ending}", benchmark)
                )
    return rows, *labels.numbered(labels.Values(values), benchmark, str(paths[0]), folder)


def _tar_label(raw: bytes, where: str, benchmark: Benchmark) -> object:
    if not benchmark.multilabel:
        text = raw.decode("utf-8", "replace").strip()
        return int(text) if re.fullmatch(r"-?\d+", text) else text
    try:
        marks = np.load(io.BytesIO(raw), allow_pickle=False).reshape(-1)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{where}: not a plain .npy array ({error}); write it anew with numpy.save"
        ) from error
    if marks.shape != (len(benchmark.classes),) or not np.isin(marks, (0, 1)).all():
        raise DataError(
            f"{where}: expected {len(benchmark.classes)} marks of 0 or 1, found shape {marks.shape}"
        )
    return np.flatnonzero(marks).tolist()


def _first_files(folder: Path, words: Sequence[str], patterns: Sequence[str]) -> list[Path]:
    """Return the files of the first pattern that matches, ordered by the numbers in them
    (``2.tar``, ``10.tar``).
    """
    for word in words:
        for pattern in patterns:
            if found := sorted(folder.glob(pattern.format(word)), key=_natural):
                return found
    return []


def _natural(path: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", path.name)
    ]


def _class_folders(folder: Path) -> bool:
    """Say whether ``folder`` has a subfolder with an image at any depth."""
    if not folder.is_dir():
        return False
    return any(
        _holds_image(inner)
        for inner in sorted(folder.iterdir())
        if inner.is_dir() and inner.name[0] != "."
    )


def _holds_image(folder: Path) -> bool:
    return any(
        file.lower().endswith(IMAGE_SUFFIXES) for _, _, files in os.walk(folder) for file in files
    )
