"""The vision-datasets layout, in which ELEVATER is published: an index and zip files next to it.

There are two forms of index. Iris: ``test.txt`` (or ``test_images.txt``, ``test_ic.txt``) with
``<path> <label[,label]>`` per line, labels counted from 0, and ``labels.txt`` or ``labelmap.txt``
with one class name per line. COCO: ``test.json`` or ``test_meta.json`` with ``images``,
``annotations`` and ``categories``. ``train.zip@dir/x.jpg`` is a file inside a zip.

Source: vision-datasets 0.2.17 as used by Elevater_Toolkit_IC,
``resources/datasets/vision_datasets.json``.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from dimefm.data import Row, Rows, Shard
from dimefm.data.rows import inside
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.datasets import class_names, labels
from dimefm.evaluate.datasets.text_files import LONGEST_LINE, text_lines
from dimefm.evaluate.guards import reason_of
from dimefm.runtime.printable import shown
from dimefm.storage.reading import is_row_fault, patiently, read_file
from dimefm.storage.small_files import read_json

T = TypeVar("T")

TRIES = "{0}.txt, {0}_images.txt, {0}_ic.txt, {0}.json, {0}_meta.json"
LABEL_FILES = ("labels.txt", "labelmap.txt")
MOST_BYTES = 256 << 20
"""Bytes of a COCO index."""

LARGEST_IMAGE = 256 << 20
"""Unpacked bytes of a member of a zip file."""

SMALL_IMAGE = 16 << 20
MOST_TIMES = 100
"""How many times as large as in the zip file a member of more than ``SMALL_IMAGE`` bytes may be."""

ENCRYPTED = 1
"""Flag of a member of a zip file."""

IRIS_LINE = re.compile(r"(?P<path>\S.*) (?P<labels>\d+(,\d+)*)")


@dataclass(frozen=True)
class Index:
    """What an index says: n files, the labels of each, and the name of each label, if stated."""

    files: list[str]
    labels: list[list[int]]
    names: Sequence[str] | None


def locate(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return the index of a split, [] when there is none.

    A ``.txt`` counts only if its first line is a line of an index.
    """
    for word in words:
        for name in TRIES.format(word).split(", "):
            path = folder / name
            if path.is_file() and (path.suffix == ".json" or _is_iris(path)):
                return [path]
    return []


def read(folder: Path, paths: list[Path], benchmark: Benchmark) -> tuple[Rows, np.ndarray, str]:
    """Return (rows, labels int64 [n] or 0/1 [n, C], remark) of one index.

    Raises DataError when the index cannot be used.
    """
    path = paths[0]
    index = _read_index(folder, path)
    n_classes = len(benchmark.classes)
    if index.names is None:
        number_of_label = np.arange(n_classes)
        remark = labels.BY_NUMBER
    else:
        number_of_label = labels.numbers_of(index.names, benchmark, str(path), positional=True)
        remark = ""
    if benchmark.multilabel:
        numbers = labels.marks(index.labels, number_of_label, n_classes, str(path))
        shard = IndexShard(path, folder, index.files, None)
    else:
        single_labels = _single_labels(index, path, benchmark)
        checked = class_names.within(single_labels, len(number_of_label), str(path))
        numbers = number_of_label[checked]
        shard = IndexShard(path, folder, index.files, numbers)
    return Rows([shard]), numbers, remark


def stated_names(folder: Path, path: Path) -> Sequence[str] | None:
    """Return the class names that an index states for its labels, None when it states none."""
    return _read_index(folder, path).names


def count(folder: Path, path: Path) -> int:
    """Return how many images an index lists."""
    return len(files(folder, path))


def files(folder: Path, path: Path) -> list[str]:
    """Return the images that an index lists, in its order."""
    return _read_index(folder, path).files


def _read_index(folder: Path, path: Path) -> Index:
    return _read_coco(path) if path.suffix == ".json" else _read_iris(folder, path)


def _single_labels(index: Index, path: Path, benchmark: Benchmark) -> list[int]:
    """Return the label of each file; raise DataError when a file has none or several."""
    single_labels = []
    for file, file_labels in zip(index.files, index.labels, strict=True):
        if len(file_labels) != 1:
            raise DataError(
                f"{path}: {shown(file)} has {len(file_labels)} labels, {benchmark.name} has one."
                " Fix: correct the index"
            )
        single_labels.append(file_labels[0])
    return single_labels


def _is_iris(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.readline(LONGEST_LINE)
    first_line = start.decode("utf-8-sig", "replace").strip()
    return IRIS_LINE.fullmatch(first_line) is not None


def _read_iris(folder: Path, path: Path) -> Index:
    """Read an Iris index, and the label names next to it."""
    files: list[str] = []
    label_lists: list[list[int]] = []
    for number, line in enumerate(text_lines(path), start=1):
        line = line.strip()
        if not line:
            continue
        match = IRIS_LINE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{path}, line {number}: expected '<path> <label[,label]>', found"
                f" '{shown(line)}'. Fix: correct the line"
            )
        files.append(match["path"])
        label_lists.append(_numbers(match["labels"], f"{path}, line {number}"))
    return Index(files, label_lists, _label_names(folder))


def _numbers(text: str, where: str) -> list[int]:
    """Return the labels of a line."""
    values = []
    for label in text.split(","):
        if len(label) > class_names.MOST_DIGITS:
            raise DataError(
                f"{where}: a label has {len(label):,} digits, expected a class number. Fix: correct"
                " the line"
            )
        values.append(int(label))
    return values


def _label_names(folder: Path) -> list[str] | None:
    """Return the lines of the first label file in a folder, None when it has none."""
    for name in LABEL_FILES:
        path = folder / name
        if path.is_file():
            names = list(text_lines(path))
            while names and not names[-1].strip():
                names.pop()
            return names
    return None


def _read_coco(path: Path) -> Index:
    """Read a COCO index; a label is the place of its category among the sorted ids."""
    try:
        return _parse_coco(read_json(path, MOST_BYTES))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a COCO index of images and annotations ({reason_of(error)}). Fix: fetch"
            " it again"
        ) from error


def _parse_coco(content: dict) -> Index:
    images = content["images"]
    annotations = [(mark["image_id"], mark["category_id"]) for mark in content["annotations"]]
    name_of_category = {item["id"]: item.get("name") for item in content.get("categories", [])}
    categories = sorted(name_of_category or {category for _, category in annotations})
    place_of_category = {category: place for place, category in enumerate(categories)}

    labels_of_image: dict[object, list[int]] = {image["id"]: [] for image in images}
    if len(labels_of_image) < len(images):
        raise ValueError("two images have one id")
    for image, category in annotations:
        labels_of_image[image].append(place_of_category[category])

    files = [_coco_file(image) for image in images]
    names = [name_of_category.get(category) for category in categories]
    stated = bool(name_of_category) and all(names)
    if stated and not all(isinstance(name, str) for name in names):
        raise TypeError("the name of a category is no text")
    return Index(files, list(labels_of_image.values()), names if stated else None)


def _coco_file(image: Mapping) -> str:
    """Return the path of an image of a COCO index, ``ZIP@MEMBER`` inside a zip."""
    name = image["file_name"]
    zip_file = image.get("zip_file") or ""
    if not isinstance(name, str) or not isinstance(zip_file, str):
        raise TypeError("the name of a file is no text")
    if "\0" in name or "\0" in zip_file:
        raise ValueError("the name of a file holds a NUL")
    return f"{zip_file}@{name}" if zip_file else name


class IndexShard(Shard):
    """The images of one index, in its order; paths are relative to ``folder`` and stay in it."""

    def __init__(self, path: Path, folder: Path, files: list[str], labels: np.ndarray | None):
        super().__init__(path, path.name)
        self.folder = folder
        self.files = files
        self._labels = labels
        self._zips: tuple[int, dict[str, zipfile.ZipFile]] = (os.getpid(), {})
        containers = {_split(file)[0] for file in files}
        for container in sorted(containers - {""}):
            if not _is_file(inside(folder, container)):
                raise DataError(
                    f"{path}: names images in {shown(container)}, which is not in {folder}. Fix:"
                    " put it there"
                )

    def __len__(self) -> int:
        return len(self.files)

    def keys(self) -> list[str]:
        return list(self.files)

    def __getitem__(self, index: int) -> Row:
        file = self.files[index]
        label = None if self._labels is None else int(self._labels[index])
        return Row(file, image=self._read(file), label=label)

    def _read(self, file: str) -> bytes:
        """Return the bytes of an image; raise BadRow when the image is at fault."""
        container, member = _split(file)
        if not container:
            return read_file(self._path_of(member))
        zip_file = self._zip(container)
        try:
            read = functools.partial(_member, zip_file, member)
            return patiently(functools.partial(_seeking, read), self.folder / container)
        except KeyError as error:
            raise BadRow(f"{container} has no member {shown(member)}") from error
        except DataError:
            raise
        except Exception as error:  # zlib.error, LZMAError, NotImplementedError, ...
            if is_row_fault(error):
                raise BadRow(f"cannot be read: {reason_of(error)}") from error
            raise

    def _path_of(self, name: str) -> Path:
        """Return the path of a plain file; raise BadRow when it leads outside or cannot be one."""
        try:
            return inside(self.folder, name)
        except DataError as error:
            raise BadRow(f"'{shown(name)}' leads outside {self.folder}") from error
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: before Python 3.13
            if is_row_fault(error):
                raise BadRow(f"cannot be read: {reason_of(error)}") from error
            raise

    def _zip(self, container: str) -> zipfile.ZipFile:
        """Return the open zip file.

        Every process opens its own, because processes that are forked share a file's position.
        """
        process = os.getpid()
        if self._zips[0] != process:
            self._zips = (process, {})
        zips = self._zips[1]
        if container not in zips:
            zips[container] = _opened(inside(self.folder, container))
        return zips[container]

    def __getstate__(self):
        return {**self.__dict__, "_zips": (0, {})}


def _is_file(path: Path) -> bool:
    """Tell whether there is a regular file at ``path``; no file has a name that is too long."""
    try:
        return path.is_file()
    except OSError as error:
        if is_row_fault(error):
            return False
        raise


def _opened(path: Path) -> zipfile.ZipFile:
    """Return an open zip file; raise DataError when it is damaged."""
    try:
        return patiently(lambda: _seeking(lambda: zipfile.ZipFile(path)), path)
    except DataError:
        raise
    except Exception as error:  # zipfile raises whatever its parsing raises
        if not is_row_fault(error):
            raise
        raise DataError(
            f"{path}: not a whole zip file ({reason_of(error)}). Fix: fetch it again"
        ) from error


def _seeking(read: Callable[[], T]) -> T:
    """Return ``read()``; raise BadZipFile when the file names a place that it does not have."""
    try:
        return read()
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise zipfile.BadZipFile("a place in the file is negative or too large") from error
        raise


def _member(container: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of a member; raise BadRow when it is encrypted or a bomb."""
    info = container.getinfo(name)
    if info.flag_bits & ENCRYPTED:
        raise BadRow("cannot be read: it is encrypted")
    if info.file_size > LARGEST_IMAGE:
        raise BadRow(
            f"cannot be read: unpacks to {info.file_size:,} bytes, the limit is {LARGEST_IMAGE:,}"
        )
    times = info.file_size / max(1, info.compress_size)
    if info.file_size > SMALL_IMAGE and times > MOST_TIMES:
        raise BadRow(
            f"cannot be read: unpacks to {times:,.0f} times its size, the limit is {MOST_TIMES}"
        )
    return container.read(info)


def _split(file: str) -> tuple[str, str]:
    """Return (zip file, member), or ("", path) of a plain file."""
    container, at, member = file.partition("@")
    if at and container.lower().endswith(".zip"):
        return container, member
    return "", file
