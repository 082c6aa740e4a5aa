"""Captions in a table or a list, one caption a line: CSV, TSV, and the token files of Flickr.

The files are read by :mod:`dimefm.data.formats.table` (a header names the columns) or
:mod:`dimefm.data.formats.captions` (``name.jpg#0<tab>caption`` and its relatives, also Kaggle's
``results.csv`` with ``|``). Which images a split has is told by a column ``split``, or by a list of
names next to the file: ``Flickr_8k.testImages.txt`` or ``test.txt``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dimefm.data import Columns, Rows, open_rows
from dimefm.data.columns import choose
from dimefm.data.formats.table import column_names
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.datasets.captions.pair_set import (
    CaptionLists,
    ImageFolder,
    PairSet,
    image_of,
    refuse_empty,
    split_named,
)
from dimefm.evaluate.datasets.text_files import text_lines
from dimefm.storage.small_files import Unreadable, parse_json

TABLES = (".csv", ".tsv")
SPLIT = "split"
"""Column that names the split of a row."""

FILE_COLUMNS = ("filename", "file_name", "image_name", "img_path")
"""Columns that name image files, besides those that all tables are read by."""

RAW = "raw"
"""Column of all captions of an image, as a list in JSON: Flickr30k on the Hugging Face hub."""

SPLIT_LISTS = {
    "train": ("Flickr_8k.trainImages.txt", "train.txt"),
    "val": ("Flickr_8k.devImages.txt", "val.txt"),
    "test": ("Flickr_8k.testImages.txt", "test.txt"),
}
"""Lists of the images of a split, next to a file of captions."""


def read(path: Path, split: str, root: Path, name: str) -> PairSet:
    """Return the pairs of a table or list.

    Raises DataError when its form is unknown, it has no image of the split, or no image is found.
    """
    rows, splits = _opened(path)
    lists = CaptionLists()
    stated_splits = set()
    listed, remark = None, ""
    if splits is None:
        listed, remark = _listed(path, split)
    number = 0
    for shard_number, shard in enumerate(rows.shards):
        for row, key in enumerate(shard.keys()):
            stated = split
            if splits is not None:
                stated = _stated(splits, number)
                stated_splits.add(stated)
            number += 1
            image = image_of(key)
            is_listed = listed is None or image in listed or Path(image).stem in listed
            if stated != split or not is_listed:
                continue
            try:
                texts = rows.shards[shard_number][row].texts
            except BadRow:
                lists.faulty += 1
            else:
                lists.add(image, _unpacked(texts))
    images = list(lists.captions)
    refuse_empty(path, split, len(images), stated_splits)
    remarks = [part for part in (remark, *lists.remarks()) if part]
    image_rows = ImageFolder(root, path).rows(images, name)
    return PairSet(name, image_rows, list(lists.captions.values()), "; ".join(remarks), "table")


def _opened(path: Path) -> tuple[Rows, Rows | None]:
    """Return the captions with the names of their images as keys, and the column of splits."""
    if path.suffix in TABLES:
        try:
            return _opened_table(path)
        except DataError as fault:
            try:
                return open_rows([path], "text", input_format="captions"), None
            except DataError:
                raise fault from None
    return open_rows([path], "text", input_format="captions"), None


def _opened_table(path: Path) -> tuple[Rows, Rows | None]:
    names = column_names(path)
    image = next((name for name in FILE_COLUMNS if name in names), None)
    text = RAW if RAW in names else None
    chosen = choose(path, names, "pair", Columns(image=image, text=text))
    if chosen.text is None:
        choose(path, names, "text", Columns())  # says which columns are expected
    columns = Columns(key=chosen.image, text=chosen.text)
    captions = open_rows([path], "text", input_format="table", columns=columns)
    if SPLIT not in names:
        return captions, None
    splits = open_rows([path], "text", input_format="table", columns=Columns(text=SPLIT))
    return captions, splits


def _unpacked(texts: Sequence[str]) -> list[object]:
    """Return the captions in texts, of which one may be a list of captions in JSON."""
    captions: list[object] = []
    for text in texts:
        content: object = None
        if text.startswith('["'):
            with contextlib.suppress(Unreadable):
                content = parse_json(text)
        captions += content if isinstance(content, list) else [text]
    return captions


def _stated(splits: Rows, number: int) -> str:
    """Return the split that the column names for a row."""
    try:
        (word,) = splits[number].texts
    except BadRow:
        return ""
    return split_named(word) or word


def _listed(path: Path, split: str) -> tuple[set[str] | None, str]:
    """Return the names of the images of a split, None for all, and what to say of it."""
    for file in SPLIT_LISTS[split]:
        names_file = path.parent / file
        if names_file.is_file() and names_file != path:
            names = {line.strip() for line in text_lines(names_file)}
            return names - {""}, f"the images of {file}"
    return None, "the file names no splits: all its images are taken"
