"""Images with captions, for retrieval: the layouts that they come in, and how one is detected.

===========  ======================================================================================
karpathy     ``dataset_coco.json``, ``dataset_flickr8k.json``, ``dataset_flickr30k.json``
coco         COCO's ``captions_val2014.json``: images and annotations
webdataset   clip-benchmark's folder: ``dataset_type.txt``, ``test/nshards.txt``, ``test/0.tar``
parquet      a file or ``test.parquet`` in a folder: a column of images, one of captions
table        CSV or TSV with a header, ``Flickr8k.token.txt``, ``results_20130124.token``
===========  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dimefm.data.image_files import is_litter
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.datasets.captions import json_lists, shards, tables
from dimefm.evaluate.datasets.captions.pair_set import SHOWN, PairSet, split_named
from dimefm.evaluate.datasets.layouts import SPLITS
from dimefm.evaluate.datasets.plain_layouts import locate_parquet, locate_tar
from dimefm.evaluate.guards import dataset_guard
from dimefm.runtime.text import first_few, readable

Read = Callable[[Path, str, Path, str], PairSet]
"""``read(path, split, root, name)`` returns the pairs of a file or folder."""

LAYOUTS: dict[str, Read] = {
    "karpathy": json_lists.read,
    "coco": json_lists.read,
    "webdataset": shards.read_webdataset,
    "parquet": shards.read_parquet,
    "table": tables.read,
}

LISTS = (
    "dataset_*.json",
    "captions_*.json",
    "Flickr8k.token.txt",
    "results_20130124.token",
    "captions.txt",
    "results.csv",
    "*.csv",
    "*.tsv",
)
"""Names of lists of captions that are looked for in a folder, in this order."""


def open_pairs(
    path: str | Path,
    split: str = "test",
    root: str | Path | None = None,
    layout: str | None = None,
) -> PairSet:
    """Return the images of a split and their captions, from a file or folder of any layout.

    ``root`` is the folder of the images; without it, that of the file. No file outside of it is
    read. ``split`` is "train", "val" or "test". The set is called after its file or folder.

    Raises DataError when the source is absent, of no known layout, or has no image of the split.
    """
    source = Path(path)
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"unknown layout '{layout}': {did_you_mean(layout, LAYOUTS)}")
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder. Fix: check the path")
    with dataset_guard(source):
        file, found = _detected(source, split)
        chosen = layout or found
        folder = file if file.is_dir() else file.parent
        image_root = folder if root is None else Path(root)
        return LAYOUTS[chosen](file, split, image_root, readable(_name_of(file)))


def _name_of(path: Path) -> str:
    """Return the name of a set: its folder's where a file is called after its split."""
    resolved = path.resolve()
    stem = resolved.name if resolved.is_dir() else resolved.name.partition(".")[0]
    word = stem.partition("-")[0]
    if not resolved.is_dir() and split_named(word) is not None:
        parent = resolved.parent
        return parent.parent.name if parent.name in ("data", word) else parent.name
    return stem.removeprefix("dataset_")


def _detected(path: Path, split: str) -> tuple[Path, str]:
    """Return the file or folder to read, and its layout."""
    if path.is_file():
        return path, _layout_of_file(path)
    words = [word for words in SPLITS.values() for word in words]
    if shards.dataset_type(path) or locate_tar(path, words):
        return path, "webdataset"
    if locate_parquet(path, words):
        return path, "parquet"
    for pattern in LISTS:
        lists = sorted(file for file in path.glob(pattern) if not is_litter(file.name))
        if len(lists) > 1:
            of_split = [file for file in lists if split in file.name]
            lists = of_split if len(of_split) == 1 else lists
        if len(lists) == 1:
            return lists[0], _layout_of_file(lists[0])
        if lists:
            names = first_few([file.name for file in lists], SHOWN)
            raise DataError(
                f"{path}: several files may hold the captions: {names}. Fix: name one of them"
            )
    raise DataError(
        f"{path}: no images with captions, expected a JSON of Karpathy or COCO, tars or Parquet of"
        " a split, or a CSV. Fix: name the file that holds the captions"
    )


def _layout_of_file(path: Path) -> str:
    """Return the layout of a file by its ending; both kinds of JSON have one reader."""
    name = path.name.lower()
    if name.endswith(".json"):
        return "karpathy"
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(".tar"):
        return "webdataset"
    if name.endswith((".csv", ".tsv", ".txt", ".token")):
        return "table"
    raise DataError(
        f"{path}: cannot tell what it holds by its ending, expected .json, .csv, .tsv, .txt,"
        " .token, .parquet or .tar. Fix: pass --layout"
    )
