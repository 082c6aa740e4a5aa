"""Layouts with a test split in a place of its own: image folders, Parquet and webdataset tars.

Each layout is a pair of functions. ``locate(folder, words)`` returns the paths of a split, none
when it is absent; that of image folders is in :mod:`~dimefm.evaluate.datasets.class_folders`.
``read(folder, paths, benchmark)`` returns (rows, labels, remark), where labels are int64 [n], or
0/1 [n, C] for a multi-label benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.data import Rows, Shard, open_rows
from dimefm.data.columns import USUAL
from dimefm.data.formats.folder import FolderShard
from dimefm.data.formats.parquet import ParquetShard
from dimefm.data.formats.tar import TarShard
from dimefm.data.image_files import is_litter
from dimefm.data.subshards import Part
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.datasets import class_names, labels
from dimefm.evaluate.datasets.borders import without_borders
from dimefm.runtime.printable import shown
from dimefm.runtime.text import file_key, first_few
from dimefm.storage.npy import array_of

Split = tuple[Rows, np.ndarray, str]

FEW = 4
"""Names that a message lists at most."""


def read_folders(folder: Path, paths: list[Path], benchmark: Benchmark) -> Split:
    """Read ``<class>/<image>`` below one folder.

    Class folders map by name, or by number when all of them are numbers.
    """
    path = paths[0]
    if benchmark.multilabel:
        raise DataError(
            f"{path}: {benchmark.name} has several labels an image, class folders one. Fix: use tar"
            " with .npy"
        )
    rows = open_rows([path], "image", dataroot=folder, input_format="folder")
    remarks = []
    if path == folder and not benchmark.wnids:
        remarks.append("no split folders: every image is taken")
    if benchmark.other_folders:
        rows, remark = _of_known_classes(rows, benchmark, path)
        remarks.append(remark)
    class_folders = _class_folders(rows, path)
    raw = labels.RawLabels(class_folders)
    numbers, label_remark = labels.class_numbers(raw, benchmark, str(path), folder)
    if benchmark.borders:
        rows, remark = _without_borders(rows, benchmark, path)
        remarks.append(remark)
    remarks.append(label_remark)
    if rows.skipped:
        remarks.append(f"left out: {rows.skipped.describe()}")
    return rows, numbers, "; ".join(filter(None, remarks))


def _class_folders(rows: Rows, path: Path) -> list[str]:
    """Return the name of the class folder of each row; raise DataError for one outside of any."""
    names: list[str] = []
    for shard in rows.shards:
        for key in shard.keys():
            name, slash, _ = key.partition("/")
            if not slash:
                raise DataError(
                    f"{path / key}: an image outside the class folders. Fix: move it into the"
                    " folder of its class"
                )
            names.append(name)
    return names


def _of_known_classes(rows: Rows, benchmark: Benchmark, path: Path) -> tuple[Rows, str]:
    """Return the rows in folders of the benchmark's classes, and how many others there are.

    Raises DataError when no folder is one of its classes.
    """
    folders = sorted(set(_class_folders(rows, path)))
    known = class_names.known(folders, benchmark.classes, benchmark.aliases, benchmark.wnids)
    wanted = {folder for folder, is_known in zip(folders, known, strict=True) if is_known}
    if not wanted:
        raise DataError(
            f"{path}: none of its {len(folders)} class folders is a class of {benchmark.name},"
            f" e.g. {shown(folders[0])}; expected {first_few(benchmark.classes, FEW)}. Fix: name"
            " the folders by their classes"
        )
    left_out = len(folders) - len(wanted)
    if not left_out:
        return rows, ""
    shards: list[Shard] = []
    for shard in rows.shards:
        assert isinstance(shard, FolderShard)
        files = [file for file in shard.files if file_key(file).partition("/")[0] in wanted]
        if files:
            shards.append(shard.part(shard.name, files))
    noun = "folder" if left_out == 1 else "folders"
    return Rows(shards, rows.skipped), f"{left_out} {noun} of other classes left out"


def _without_borders(rows: Rows, benchmark: Benchmark, path: Path) -> tuple[Rows, str]:
    """Return the rows as they are to be scored, and what was done about their borders."""
    pixels = benchmark.borders.get(path.name)
    if pixels is None:
        return rows, f"borders in {path.name} not cropped"
    return without_borders(rows, pixels), f"border of {pixels} pixels cropped from PNG files"


def locate_parquet(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return the Parquet files of a split.

    Tries ``<split>.parquet``, ``<split>-*.parquet``, ``data/<split>-*.parquet`` and
    ``<split>/*.parquet``, in this order.
    """
    patterns = ("{}.parquet", "{}-*.parquet", "data/{}-*.parquet", "{}/*.parquet")
    return _first_files(folder, words, patterns)


def read_parquet(folder: Path, paths: list[Path], benchmark: Benchmark) -> Split:
    """Read ``image, label`` columns.

    Hugging Face's class names map by name; other numbers are lines of the class names or places in
    the card.
    """
    rows = open_rows(paths, "image", dataroot=folder, input_format="parquet")
    column = label_column(rows.shards)
    raw = labels.read_labels(rows.shards)
    where = f"{paths[0]}, column '{shown(column)}'"
    numbers, remark = labels.class_numbers(raw, benchmark, where, folder)
    return rows, numbers, remark


def label_column(shards: Sequence[Shard]) -> str:
    """Return the name of the label column of all files; raise DataError when one lacks it."""
    columns: dict[str, Path] = {}
    for shard in shards:
        whole = shard.whole if isinstance(shard, Part) else shard
        assert isinstance(whole, ParquetShard)
        column = whole.label_column
        if column is None:
            raise DataError(
                f"{shard.path}: no label column; expected {', '.join(USUAL['label'])}, found"
                f" {shown(whole.column_names, 200)}. Fix: rename the column of labels"
            )
        columns.setdefault(column, shard.path)
    first, *others = columns
    if others:
        raise DataError(
            f"{columns[others[0]]}: labels are in column '{shown(others[0])}', in"
            f" {columns[first]} in '{shown(first)}'. Fix: write the files alike"
        )
    return first


def locate_tar(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return ``<split>.tar``, ``<split>-*.tar`` or ``<split>/*.tar``."""
    return _first_files(folder, words, ("{}.tar", "{}-*.tar", "{}/*.tar"))


def read_tar(folder: Path, paths: list[Path], benchmark: Benchmark) -> Split:
    """Read webdataset tars.

    ``.cls`` holds a class number or name, ``.npy`` a 0/1 vector [C] for a multi-label set.
    """
    rows = open_rows(paths, "image", dataroot=folder, input_format="tar")
    values: list[object] = []
    for shard in rows.shards:
        if not isinstance(shard, TarShard):
            raise DataError(
                f"{shard.path}: was packed for training. Fix: evaluate on the images that it was"
                " packed from"
            )
        values += _tar_labels(shard, benchmark)
    raw = labels.RawLabels(values)
    numbers, remark = labels.class_numbers(raw, benchmark, str(paths[0]), folder)
    return rows, numbers, remark


def _tar_labels(shard: TarShard, benchmark: Benchmark) -> list[object]:
    """Return the label of each sample of a tar."""
    ending = "npy" if benchmark.multilabel else "cls"
    values: list[object] = []
    for key, members in zip(shard.keys(), shard.members, strict=True):
        if ending not in members:
            raise DataError(
                f"{shard.path}: {key} has no .{ending} label; found: {', '.join(members)}. Fix:"
                " add it"
            )
        where = f"{shard.path}: {key}.{ending}"
        try:
            content = shard.member_bytes(members[ending])
        except BadRow as error:
            raise DataError(f"{where}: {error}. Fix: write the tar again") from error
        if benchmark.multilabel:
            values.append(_marked_classes(content, len(benchmark.classes), where))
        else:
            values.append(_number_or_name(content))
    return values


def _number_or_name(content: bytes) -> int | str:
    """Return what a ``.cls`` file holds."""
    text = content.decode("utf-8", "replace").strip()
    is_number = re.fullmatch(r"-?\d+", text) is not None
    if is_number and len(text) <= class_names.MOST_DIGITS:
        return int(text)
    return text


def _marked_classes(content: bytes, n_classes: int, where: str) -> list[int]:
    """Return the numbers of the classes that a ``.npy`` file marks with 1."""
    try:
        marks, _ = array_of(content)
    except ValueError as error:
        raise DataError(
            f"{where}: not a plain .npy array ({error}). Fix: write it again with numpy.save"
        ) from error
    marks = marks.reshape(-1)
    if marks.shape != (n_classes,) or not np.isin(marks, (0, 1)).all():
        raise DataError(f"{where}: expected {n_classes} marks of 0 or 1, found shape {marks.shape}")
    return np.flatnonzero(marks).tolist()


def _first_files(folder: Path, words: Sequence[str], patterns: Sequence[str]) -> list[Path]:
    """Return the files of the first pattern that matches, ordered by the numbers in their names."""
    for word in words:
        for pattern in patterns:
            paths = [path for path in folder.glob(pattern.format(word)) if not is_litter(path.name)]
            if paths:
                return sorted(paths, key=_natural_order)
    return []


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts ``2.tar`` before ``10.tar``."""
    order = []
    for part in re.split(r"(\d+)", path.name):
        if part.isdecimal():
            order.append((int(part), ""))
        else:
            order.append((-1, part))
    return order
