"""A folder that is one dataset of one's own: class folders, tables or tars, and no card.

The folder is the dataset itself, whatever its name. Its layouts are those of
:mod:`~dimefm.evaluate.datasets.layouts`; tables and tars need no split in their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data import open_rows
from dimefm.data.folders import CLASS_FILE
from dimefm.data.image_files import is_litter
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.benchmark import (
    FOLDER_NAMES,
    GIVEN_NAMES,
    PLAIN_TEMPLATE,
    Benchmark,
    lines_of,
    template_of,
    templates_beside,
)
from dimefm.evaluate.datasets import class_folders, labels, plain_layouts, vision_datasets
from dimefm.evaluate.datasets.layouts import (
    LAYOUTS,
    SPLITS,
    Dataset,
    listing,
    read_split,
    refuse_link_outside,
)
from dimefm.evaluate.datasets.plain_layouts import Split
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.metrics import METRICS
from dimefm.runtime.printable import shown
from dimefm.runtime.text import file_key, first_few

LOOSE = {"parquet": "parquet", "webdataset": "tar"}
"""Layouts whose files may have any name -> their ending, which is their input format, too."""

SPLITS_SCORED = ("test", "val")
"""Splits that are scored without being named; a training split is not."""

MULTILABEL = "map_11_point"
DATA_NAMES = "class names stated by the data"
SHOWN = 8
"""Classes that a note lists at most."""


@dataclass(frozen=True)
class Choices:
    """What a user decides about a folder; None and () mean what lies in the folder, or defaults.

    ``classnames`` and ``templates_file`` are text files with a line for each, ``templates`` are
    templates themselves. ``metric`` is a name of :data:`dimefm.evaluate.metrics.METRICS`.
    """

    classnames: Path | None = None
    templates_file: Path | None = None
    templates: Sequence[str] = ()
    metric: str | None = None
    layout: str | None = None
    split: str | None = None


def open_folder(root: str | Path, choices: Choices | None = None) -> Dataset:
    """Return the dataset that a folder is, with the split to score and a note on what it holds.

    Class names are those of ``choices``, else of ``classnames.txt``, else of the class folders or
    of the labels. Without a choice the test split is scored, else the validation split.

    Raises DataError, one line, when there is no such folder, it holds no dataset, a class name is
    unknown or stands for two classes, a label does not fit, or a choice cannot be used.
    """
    choices = choices or Choices()
    folder = Path(root)
    _refuse_unusable(folder, choices)
    with dataset_guard(folder):
        place = _place(folder, choices)
        benchmark = _benchmark(folder, place, choices)
        dataset = Dataset(benchmark, folder, place.layout, root=folder)
        if place.is_loose:
            split = LAYOUTS[place.layout].read(folder, place.paths, benchmark)
        else:
            split = read_split(dataset, place.split)
        if not len(split[1]):
            raise _no_image(folder, place)
        return dataclasses.replace(dataset, test=split, note=_note(dataset, place, split))


def _no_image(folder: Path, place: _Place) -> DataError:
    names = first_few([path.name for path in place.paths], SHOWN)
    return DataError(f"{folder}: no image in {names}. Fix: add images, or name another split")


def _refuse_unusable(folder: Path, choices: Choices) -> None:
    """Raise DataError for a folder that is absent or empty, and for names that are unknown."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder. Fix: give the folder that holds the class folders"
        )
    if all(is_litter(path.name) for path in folder.iterdir()):
        raise DataError(
            f"{folder}: an empty folder; expected class folders with images, a Parquet file or a"
            " tar. Fix: give the folder that holds them"
        )
    if choices.metric is not None and choices.metric not in METRICS:
        raise DataError(
            f"unknown metric '{choices.metric}': {did_you_mean(choices.metric, METRICS)}"
        )
    if choices.layout is not None and choices.layout not in LAYOUTS:
        raise DataError(
            f"unknown layout '{choices.layout}': {did_you_mean(choices.layout, LAYOUTS)}"
        )
    if choices.split is not None and choices.split not in SPLITS:
        raise DataError(f"unknown split '{choices.split}': {did_you_mean(choices.split, SPLITS)}")


@dataclass(frozen=True)
class _Place:
    """Where the images to score lie: the layout, the name of the split and its files or folder.

    A loose place has no split in the names of its files.
    """

    layout: str
    split: str
    paths: list[Path]
    is_loose: bool = False


def _place(folder: Path, choices: Choices) -> _Place:
    """Return where the images to score lie; raise DataError when there are none."""
    layouts = list(LAYOUTS) if choices.layout is None else [choices.layout]
    splits = SPLITS_SCORED if choices.split is None else (choices.split,)
    for split in splits:
        for layout in layouts:
            paths = LAYOUTS[layout].locate(folder, SPLITS[split])
            if paths:
                return _Place(layout, split, paths)
    others = _splits_in(folder, layouts)
    if others:
        raise DataError(
            f"{folder}: no {' or '.join(splits)} split; splits found: {', '.join(others)}. Fix: add"
            f" {splits[0]}/, or score another with --split {others[0]}"
        )
    for layout, ending in LOOSE.items():
        paths = [path for path in folder.glob(f"*.{ending}") if not is_litter(path.name)]
        if layout in layouts and paths:
            for path in paths:
                refuse_link_outside(folder, path)
            return _Place(layout, "all", sorted(paths), is_loose=True)
    raise _nothing_here(folder)


def _splits_in(folder: Path, layouts: Sequence[str]) -> list[str]:
    """Return the splits that a folder has in one of the layouts."""
    names = []
    for split, words in SPLITS.items():
        if any(LAYOUTS[layout].locate(folder, words) for layout in layouts):
            names.append(split)
    return names


def _nothing_here(folder: Path) -> DataError:
    empty = class_folders.without_images(folder)
    if empty:
        return DataError(
            f"{folder}: no class folder holds an image ({first_few(empty, SHOWN)}). Fix: put the"
            " images of each class into the folder of its name"
        )
    return DataError(
        f"{folder}: no dataset; expected CLASS/IMAGE, test/CLASS/IMAGE, a Parquet file or a tar;"
        f" found {listing(folder)}. Fix: put the images of each class into a folder of its name"
    )


def _benchmark(folder: Path, place: _Place, choices: Choices) -> Benchmark:
    """Return the benchmark that a folder and the choices make."""
    classes, source = _classes(folder, place, choices)
    if len(classes) < 2:
        raise DataError(
            f"{folder}: one class ('{shown(classes[0])}'), where two are needed to tell apart. Fix:"
            " give the folder that holds the class folders, or name all classes with --classnames"
        )
    metric = choices.metric or "accuracy"
    if metric == "roc_auc" and len(classes) != 2:
        raise DataError(
            f"{folder}: roc_auc expected 2 classes, found {len(classes)}. Fix: choose"
            " mean_per_class or accuracy"
        )
    name = file_key(folder.resolve().name) or "folder"
    return Benchmark(
        name=name,
        title=name,
        folders=(),
        metric=metric,
        classes=classes,
        templates=_templates(folder, choices),
        train=None,
        test=None,
        multilabel=metric == MULTILABEL,
        source=source,
    )


def _templates(folder: Path, choices: Choices) -> tuple[str, ...]:
    """Return the templates that are given, else those next to the data, else a plain one."""
    if choices.templates:
        return tuple(template_of(template, "--template") for template in choices.templates)
    if choices.templates_file is not None:
        file = choices.templates_file
        return tuple(template_of(line, file) for line in _given_lines(file))
    return templates_beside(folder) or (PLAIN_TEMPLATE,)


def _classes(folder: Path, place: _Place, choices: Choices) -> tuple[tuple[str, ...], str]:
    """Return the class names, and where they are from."""
    if choices.classnames is not None:
        return _given_lines(choices.classnames), GIVEN_NAMES
    beside = lines_of(folder / CLASS_FILE)
    if beside is not None:
        return beside, CLASS_FILE
    if place.layout == "imagefolder":
        return class_folders.names(folder), FOLDER_NAMES
    names = _stated_names(folder, place)
    if not names:
        raise DataError(
            f"{folder}: its labels are numbers, and no {CLASS_FILE} says what they mean. Fix: add"
            f" {CLASS_FILE} with one class name per line in label order, or pass --classnames"
        )
    return tuple(names), DATA_NAMES


def _given_lines(path: Path) -> tuple[str, ...]:
    lines = lines_of(path)
    if lines is None:
        raise DataError(f"{path}: there is no such file. Fix: check the path")
    return lines


def _stated_names(folder: Path, place: _Place) -> Sequence[str]:
    """Return the class names that an index, a table or tars state; () where labels are numbers."""
    if place.layout not in LOOSE:
        return vision_datasets.stated_names(folder, place.paths[0]) or ()
    ending = LOOSE[place.layout]
    rows = open_rows(place.paths, "image", dataroot=folder, input_format=ending)
    if not len(rows):
        raise _no_image(folder, place)
    if place.layout == "parquet":
        plain_layouts.label_column(rows.shards)
    raw = labels.read_labels(rows.shards)
    if raw.names is not None:
        return raw.names
    names = {value for value in raw.values if isinstance(value, str)}
    return sorted(names)


def _note(dataset: Dataset, place: _Place, split: Split) -> str:
    """Return what a folder holds, and what in it is not as a user may expect."""
    _, numbers, remark = split
    classes = dataset.benchmark.classes
    parts = [f"{len(classes)} classes, {len(numbers):,} images"]
    if place.is_loose:
        parts.append("no split in the names of the files: every image is taken")
    elif place.split != "test":
        parts.append(f"{place.split} split")
    if dataset.benchmark.source == FOLDER_NAMES:
        parts.append("class names are those of the folders")
    if place.layout == "imagefolder":
        empty = class_folders.without_images(dataset.folder)
        if empty:
            parts.append(f"class folders without images: {first_few(empty, SHOWN)}")
    absent = classes_without_images(classes, numbers)
    if absent:
        names = first_few([shown(name) for name in absent], SHOWN)
        parts.append(f"{len(absent)} classes without images: {names}")
    if remark:
        parts.append(remark)
    return "; ".join(parts)


def classes_without_images(classes: Sequence[str], numbers: np.ndarray) -> list[str]:
    """Return the classes that no label names; labels are int64 [n] or 0/1 [n, C]."""
    if numbers.ndim == 2:
        counts = numbers.sum(axis=0)
    else:
        counts = np.bincount(numbers, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if not count]
