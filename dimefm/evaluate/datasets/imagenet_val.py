"""The validation images of ImageNet as they are published: one folder, without class folders.

Their labels are in one of two places. Kaggle has ``LOC_val_solution.csv``: a line
``ILSVRC2012_val_00000001,n01751748 111 108 396 337`` for each image. The development kit has
``ILSVRC2012_validation_ground_truth.txt``, whose line 1 is the number of the class of image 1, and
``meta.mat``, which has the WordNet id of each number. These numbers are not those of sorted ids.

Sources: readme.txt of ILSVRC2012_devkit_t12; torchvision 0.29, ``datasets/imagenet.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dimefm.data import Rows, open_rows
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.datasets import labels
from dimefm.evaluate.datasets.text_files import text_lines
from dimefm.evaluate.guards import reason_of
from dimefm.runtime.printable import shown

IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(\.\w+)?")
IMAGES = "ILSVRC2012_val_????????.*"
TRIES = f"{{0}}/{IMAGES}"
SOLUTION = "LOC_val_solution.csv"
SOLUTION_LINE = re.compile(r'"?(ILSVRC2012_val_\d{8})"?,"?(n\d{8})\b.*')
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
KITS = ("", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")
"""Folders that may hold the two files of the development kit."""

MOST_BYTES = 8 << 20
"""Bytes of ``meta.mat``; the published one has about one million."""

WordNetIdOf = Callable[[str], str | None]


def locate(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return the folder of the validation images, [] when there is none."""
    if "val" not in words:
        return []
    for place in (folder / "val", folder):
        if next(place.glob(IMAGES), None) is not None:
            return [place]
    return []


def read(folder: Path, paths: list[Path], benchmark: Benchmark) -> tuple[Rows, np.ndarray, str]:
    """Return (rows, class numbers int64 [n], remark) of the validation images.

    Raises DataError when there are no labels, they cannot be read, or an image has none.
    """
    path = paths[0]
    if not benchmark.wnids:
        raise DataError(
            f"{path}: holds ImageNet's validation images, but the classes of {benchmark.name} are"
            " others; expected those of imagenet-1k. Fix: call the dataset's folder imagenet-1k"
        )
    rows = open_rows([path], "image", dataroot=folder, input_format="folder")
    wnid_of, source = _labels(folder, path)
    ids = [_id_of_image(key, wnid_of, path) for shard in rows.shards for key in shard.keys()]
    distinct = sorted(set(ids))
    numbers = labels.numbers_of(distinct, benchmark, str(path))
    number_of_id = dict(zip(distinct, numbers.tolist(), strict=True))
    remark = f"labels of {source.name}"
    return rows, np.array([number_of_id[identity] for identity in ids]), remark


def _id_of_image(key: str, wnid_of: WordNetIdOf, path: Path) -> str:
    """Return the WordNet id of the class of an image."""
    match = IMAGE.fullmatch(key)
    identity = None if match is None else wnid_of(match[1])
    if identity is None:
        raise DataError(
            f"{path / key}: has no label; expected one of ImageNet's 50,000 validation images."
            " Fix: remove it, or fetch the labels again"
        )
    return identity


def _labels(folder: Path, path: Path) -> tuple[WordNetIdOf, Path]:
    """Return number of an image -> WordNet id, and the file that says it."""
    places = [place for place in (path, *path.parents) if place.is_relative_to(folder)]
    for place in places:
        if _is_inside(place / SOLUTION, folder):
            return _read_solution(place / SOLUTION), place / SOLUTION
        for kit in KITS:
            truth = place / kit / GROUND_TRUTH
            if _is_inside(truth, folder):
                return _read_kit(truth, folder), truth
    raise DataError(
        f"{path}: its images lie in no class folders, and there are no labels; expected {SOLUTION}"
        f" of Kaggle, or {GROUND_TRUTH} and {META} of the unpacked development kit. Fix: put them"
        f" into {folder}"
    )


def _is_inside(path: Path, folder: Path) -> bool:
    """Tell whether there is a file, which is no link to a place outside the folder."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _read_solution(path: Path) -> WordNetIdOf:
    """Return the labels in Kaggle's file."""
    id_of: dict[str, str] = {}
    for number, line in enumerate(text_lines(path), start=1):
        match = SOLUTION_LINE.fullmatch(line.strip())
        if match is not None:
            image = IMAGE.fullmatch(match[1])
            assert image is not None
            id_of[image[1]] = match[2]
        elif number > 1 and line.strip():
            raise DataError(
                f"{path}, line {number}: expected 'ILSVRC2012_val_NUMBER,WORDNET_ID BOX', found"
                f" '{shown(line)}'. Fix: fetch the file again"
            )
    return id_of.get


def _read_kit(truth: Path, folder: Path) -> WordNetIdOf:
    """Return the labels in the two files of the development kit."""
    meta = truth.with_name(META)
    if not _is_inside(meta, folder):
        raise DataError(
            f"{truth}: numbers classes as {META} of the development kit does, which is not next to"
            " it; expected both. Fix: put it there"
        )
    id_of_class = _read_meta(meta)
    ids: list[str] = []
    for number, line in enumerate(text_lines(truth), start=1):
        identity = id_of_class.get(line.strip())
        if identity is None:
            raise DataError(
                f"{truth}, line {number}: '{shown(line)}' is no class of {META}; expected a number"
                " of 1 to 1000. Fix: fetch the file again"
            )
        ids.append(identity)
    return lambda image: ids[int(image) - 1] if 0 < int(image) <= len(ids) else None


def _read_meta(path: Path) -> dict[str, str]:
    """Return number of a class, as text -> WordNet id."""
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        numbers = np.atleast_1d(synsets["ILSVRC2012_ID"]).tolist()
        ids = np.atleast_1d(synsets["WNID"]).tolist()
        return {str(int(number)): str(name) for number, name in zip(numbers, ids, strict=True)}
    except Exception as error:  # scipy raises whatever its parsing raises
        raise DataError(
            f"{path}: cannot be read ({reason_of(error)}); expected {META} of the development kit."
            " Fix: fetch it again"
        ) from error
