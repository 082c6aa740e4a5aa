"""The vision-datasets layout, in which ELEVATER is published: an index per split, images in zip
files beside it.

Two index forms. Iris: ``test.txt`` (or ``test_images.txt``, ``test_ic.txt``) with ``<path>
<label[,label]>`` per line, labels counted from 0, and ``labels.txt`` or ``labelmap.txt`` with one
class name per line. COCO: ``test.json`` or ``test_meta.json`` with ``images``, ``annotations`` and
``categories``. ``train.zip@dir/x.jpg`` is a file inside a zip.

Source: vision-datasets 0.2.17 as used by Elevater_Toolkit_IC,
``resources/datasets/vision_datasets.json``.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.data import Row, Rows, Shard
from dimefm.data.rows import inside
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.datasets import class_names

TRIES = "{0}.txt, {0}_images.txt, {0}_ic.txt, {0}.json, {0}_meta.json"
LABEL_FILES = ("labels.txt", "labelmap.txt")
IRIS_LINE = re.compile(r"(?P<path>\S.*) (?P<labels>\d+(,\d+)*)")


def locate(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return the index of a split, [] when there is none; a ``.txt`` counts only if its first line
    is an index line.
    """
    for word in words:
        for name in TRIES.format(word).split(", "):
            path = folder / name
            if path.is_file() and (path.suffix == ".json" or _is_iris(path)):
                return [path]
    return []


def read(folder: Path, paths: list[Path], benchmark: Benchmark) -> tuple[Rows, np.ndarray, str]:
    """Return (rows, labels int64 [n] or 0/1 [n, C], remark) of one index; raise DataError when it
    cannot be used.
    """
    path = paths[0]
    files, label_lists, names = _coco(path) if path.suffix == ".json" else _iris(folder, path)
    count = len(benchmark.classes)
    remark = ""
    if names is None:
        meaning = np.arange(count)
        remark = "labels taken by number in the card's order"
    else:
        meaning = class_names.numbers(
            names, benchmark.classes, benchmark.aliases, str(path), positional=True
        )
    if benchmark.multilabel:
        labels = np.zeros((len(files), count), dtype=np.int64)
        for row, found in enumerate(label_lists):
            labels[row, meaning[class_names.within(found, len(meaning), str(path))]] = 1
    else:
        for file, found in zip(files, label_lists, strict=True):
            if len(found) != 1:
                raise DataError(
                    f"{path}: {file} has {len(found)} labels, {benchmark.name} has one; correct the"
                    " index"
                )
        labels = meaning[
            class_names.within([found[0] for found in label_lists], len(meaning), str(path))
        ]
    return (
        Rows(
            [IndexShard(path, path.name, folder, files, None if benchmark.multilabel else labels)]
        ),
        labels,
        remark,
    )


def _is_iris(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return IRIS_LINE.fullmatch(file.readline().strip()) is not None


def _iris(folder: Path, path: Path) -> tuple[list[str], list[list[int]], list[str] | None]:
    files, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        found = IRIS_LINE.fullmatch(line.strip())
        if found is None:
            raise DataError(
                f"{path}, line {number}: expected '<path> <label[,label]>', found"
                f" '{line.strip()[:80]}'"
            )
        files.append(found["path"])
        labels.append([int(label) for label in found["labels"].split(",")])
    named = next((folder / name for name in LABEL_FILES if (folder / name).is_file()), None)
    names = named.read_text(encoding="utf-8-sig").rstrip().splitlines() if named else None
    return files, labels, names


def _coco(path: Path) -> tuple[list[str], list[list[int]], list[str] | None]:
    try:
        index = json.loads(path.read_text(encoding="utf-8-sig"))
        images = {image["id"]: image for image in index["images"]}
        marks = [(mark["image_id"], mark["category_id"]) for mark in index["annotations"]]
        categories = {item["id"]: item.get("name") for item in index.get("categories", [])}
        ids = sorted(categories or {category for _, category in marks})
        labels: dict[object, list[int]] = {image: [] for image in images}
        for image, category in marks:
            labels[image].append(ids.index(category))
        files = [_coco_file(image) for image in images.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: not a COCO index of images and annotations ({reason}); fetch it again"
        ) from error
    names = (
        [categories[number] for number in ids] if categories and all(categories.values()) else None
    )
    return files, list(labels.values()), names


def _coco_file(image: dict) -> str:
    return (
        f"{image['zip_file']}@{image['file_name']}" if image.get("zip_file") else image["file_name"]
    )


class IndexShard(Shard):
    """The images that one index names, in its order; paths are relative to ``folder`` and may not
    leave it.
    """

    def __init__(
        self, path: Path, name: str, folder: Path, files: list[str], labels: np.ndarray | None
    ):
        super().__init__(path, name)
        self.folder = folder
        self.files = files
        self.labels = labels
        self._zips: tuple[int, dict[str, zipfile.ZipFile]] = (os.getpid(), {})
        for container in sorted({_split(file)[0] for file in files} - {""}):
            if not inside(folder, container).is_file():
                raise DataError(
                    f"{path}: names images in {container}, which is not in {folder}; put it there"
                )

    def __len__(self) -> int:
        return len(self.files)

    def keys(self) -> list[str]:
        return list(self.files)

    def __getitem__(self, index: int) -> Row:
        file = self.files[index]
        container, member = _split(file)
        label = None if self.labels is None else int(self.labels[index])
        try:
            if not container:
                return Row(file, image=inside(self.folder, member).read_bytes(), label=label)
            return Row(file, image=self._zip(container).read(member), label=label)
        except KeyError as error:
            raise BadRow(f"{container} has no member {member}") from error
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise BadRow(f"cannot be read: {error}") from error

    def _zip(self, container: str) -> zipfile.ZipFile:
        """Return the open zip file; every process opens its own, because a shared file position is
        shared by a fork.
        """
        if self._zips[0] != os.getpid():
            self._zips = (os.getpid(), {})
        opened = self._zips[1]
        if container not in opened:
            try:
                opened[container] = zipfile.ZipFile(inside(self.folder, container))
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"{self.folder / container}: not a whole zip file ({error}); fetch it again"
                ) from error
        return opened[container]

    def __getstate__(self):
        return {**self.__dict__, "_zips": (0, {})}


def _split(file: str) -> tuple[str, str]:
    """Return (zip file, member), or ("", path) of a plain file."""
    container, at, member = file.partition("@")
    return (container, member) if at and container.lower().endswith(".zip") else ("", file)
