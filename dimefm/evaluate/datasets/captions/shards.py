"""Files that hold images and captions together: Parquet, and clip-benchmark's webdataset folders.

A webdataset folder has ``dataset_type.txt`` (``retrieval``), and for each split ``nshards.txt`` and
``0.tar``, ``1.tar``, ...; an image ``KEY.jpg`` has its captions in ``KEY.txt``, one a line. A
Parquet file has a column of images and one of captions (a text, or a list of texts).

Source of the webdataset layout: clip_benchmark 1.6.2, datasets/builder.py build_wds_dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.data import Columns, Rows, open_rows
from dimefm.data.formats.parquet import ParquetShard
from dimefm.data.rows import Shard
from dimefm.data.selection import Selected
from dimefm.data.subshards import Part
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.datasets.captions.pair_set import (
    CaptionLists,
    PairSet,
    refuse_empty,
    split_named,
)
from dimefm.evaluate.datasets.layouts import SPLITS
from dimefm.evaluate.datasets.plain_layouts import locate_parquet, locate_tar
from dimefm.evaluate.datasets.text_files import text_lines

TYPE = "dataset_type.txt"
RETRIEVAL = "retrieval"
COUNT = "nshards.txt"
SPLIT = "split"
"""Column of a Parquet file that names the split of a row."""


def read_parquet(path: Path, split: str, root: Path, name: str) -> PairSet:
    """Return the pairs of a Parquet file, or of the files of a split in a folder.

    Raises DataError when there is none, it lacks a column, or no image is of the split.
    """
    paths = [path]
    if path.is_dir():
        paths = locate_parquet(path, SPLITS[split])
        _refuse_absent(path, split, paths, "{0}.parquet, {0}-*.parquet, data/{0}-*.parquet")
    columns = Columns(root=root)
    images = open_rows(paths, "image", input_format="parquet", columns=columns)
    texts = open_rows(paths, "text", input_format="parquet", columns=columns)
    remarks = []
    if all(SPLIT in _column_names(shard) for shard in images.shards):
        kept = _rows_of_split(paths, split)
        images, texts = _selected(images, kept), _selected(texts, kept)
    elif not path.is_dir() and split_named(path.stem.partition("-")[0]) != split:
        remarks.append("the file names no splits: all its images are taken")
    return _paired(images, texts, remarks, name, "parquet", lines=False)


def _column_names(shard: Shard) -> list[str]:
    whole = shard.whole if isinstance(shard, Part) else shard
    assert isinstance(whole, ParquetShard)
    return whole.column_names


def _rows_of_split(paths: Sequence[Path], split: str) -> list[np.ndarray]:
    """Return, for each shard, the numbers of its rows whose column of splits names ``split``."""
    stated = open_rows(paths, "text", input_format="parquet", columns=Columns(text=SPLIT))
    splits = set()
    kept = []
    for shard in stated.shards:
        numbers = []
        for number in range(len(shard)):
            try:
                (word,) = shard[number].texts
            except BadRow:
                continue
            named = split_named(word) or word
            splits.add(named)
            if named == split:
                numbers.append(number)
        kept.append(np.array(numbers, dtype=np.int64))
    refuse_empty(paths[0], split, sum(map(len, kept)), splits)
    return kept


def _selected(rows: Rows, kept: Sequence[np.ndarray]) -> Rows:
    shards: list[Shard] = []
    for shard, numbers in zip(rows.shards, kept, strict=True):
        if len(numbers):
            shards.append(Selected(shard, numbers))
    return Rows(shards, rows.skipped)


def read_webdataset(path: Path, split: str, root: Path, name: str) -> PairSet:
    """Return the pairs of a webdataset folder of clip-benchmark, or of one tar.

    Raises DataError when the folder is of another task, lacks a shard, or has no such split.
    """
    paths = [path]
    if path.is_dir():
        _refuse_other_type(path)
        paths = _tars(path, split)
    images = open_rows(paths, "image", input_format="tar", dataroot=paths[0].parent)
    texts = open_rows(paths, "text", input_format="tar", dataroot=paths[0].parent)
    return _paired(images, texts, [], name, "webdataset", lines=True)


def dataset_type(folder: Path) -> str:
    """Return what ``dataset_type.txt`` says, "" without this file."""
    path = folder / TYPE
    if not path.is_file():
        return ""
    return next(iter(text_lines(path)), "").strip().lower()


def _refuse_other_type(folder: Path) -> None:
    stated = dataset_type(folder)
    if stated not in ("", RETRIEVAL):
        raise DataError(
            f"{folder / TYPE}: says '{stated[:80]}', expected {RETRIEVAL}. Fix: name a folder of"
            " images with captions"
        )


def _tars(folder: Path, split: str) -> list[Path]:
    """Return the tars of a split: as many as ``nshards.txt`` says, where there is one."""
    paths = locate_tar(folder, SPLITS[split])
    _refuse_absent(folder, split, paths, "{0}/nshards.txt and {0}/0.tar, {0}/1.tar, ...")
    count_file = paths[0].parent / COUNT
    if not count_file.is_file():
        return paths
    stated = next(iter(text_lines(count_file)), "").strip()
    if not stated.isdecimal() or len(stated) > 9 or not int(stated):
        raise DataError(
            f"{count_file}: holds '{stated[:40]}', expected the number of tars. Fix: correct it"
        )
    numbered = {path.name for path in paths}
    wanted = [f"{number}.tar" for number in range(int(stated))]
    missing = [name for name in wanted if name not in numbered]
    if missing:
        raise DataError(
            f"{count_file.parent}: {len(missing):,} of {int(stated):,} tars are missing, the first"
            f" is {missing[0]}. Fix: fetch them"
        )
    return [count_file.parent / name for name in wanted]


def _refuse_absent(folder: Path, split: str, paths: Sequence[Path], tries: str) -> None:
    if paths:
        return
    expected = tries.format(SPLITS[split][0])
    raise DataError(
        f"{folder}: no files of the split '{split}', expected {expected}. Fix: choose another"
        " --split"
    )


def _paired(
    images: Rows, texts: Rows, remarks: list[str], name: str, layout: str, lines: bool
) -> PairSet:
    """Return images with the captions of the same rows; ``lines`` cuts a text into its lines.

    Rows of one key are one image, that of the first of them: files of one caption a row repeat it.
    """
    lists = CaptionLists()
    kept: list[np.ndarray] = []
    for image_shard, text_shard in zip(images.shards, texts.shards, strict=True):
        numbers = []
        keys = image_shard.keys()
        names_images = not lines and _names_images(keys)
        for number, key in enumerate(keys):
            unique = key if names_images else f"{image_shard.name}/{key}"
            if unique not in lists.captions:
                numbers.append(number)
            lists.add(unique, _captions(text_shard, number, lists, lines))
        kept.append(np.array(numbers, dtype=np.int64))
    repeats = len(images) - len(lists.captions)
    if repeats:
        images = _selected(images, kept)
        remarks.append(f"{repeats:,} rows repeat the image of another and add to its captions")
    if images.skipped:
        remarks.append(f"left out: {images.skipped.describe()}")
    remarks += lists.remarks()
    captions = list(lists.captions.values())
    return PairSet(name, images, captions, "; ".join(remarks), layout)


def _names_images(keys: Sequence[str]) -> bool:
    """Tell whether keys name images, which rows may share, and are not the numbers of rows."""
    return len(set(keys)) < len(keys) or not all(key.isdecimal() for key in keys)


def _captions(shard: Shard, number: int, lists: CaptionLists, lines: bool) -> list[str]:
    """Return the captions of a row; one that cannot be read is counted."""
    try:
        texts = shard[number].texts
    except BadRow:
        lists.faulty += 1
        return []
    if not lines:
        return list(texts)
    return [line for text in texts for line in text.splitlines()]
