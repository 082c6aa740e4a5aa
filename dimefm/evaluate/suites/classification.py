"""Zero-shot classification of clip-benchmark's folders, with one label an image or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data import Columns, Rows
from dimefm.data.folders import CLASS_FILE, TEMPLATE_FILES
from dimefm.data.formats.tar import TarShard
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.benchmark import PLAIN_TEMPLATE, Benchmark, lines_of, template_of
from dimefm.evaluate.datasets.own_folder import classes_without_images
from dimefm.evaluate.datasets.plain_layouts import read_tar
from dimefm.evaluate.features import image_features, prompt_weights
from dimefm.evaluate.suites import metrics
from dimefm.evaluate.suites.folders import MULTILABEL, SuiteSet, tars_of, type_of
from dimefm.evaluate.suites.metrics import ACC1, ACC5, MEAN_AP, MEAN_PER_CLASS, METRICS
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import UNREADABLE_AS_WRONG, ZERO_SHOT, Result
from dimefm.runtime.printable import shown
from dimefm.runtime.text import first_few
from dimefm.storage.npy import array_of

FOR_ACC5 = 5
"""Classes from which on top-5 accuracy is computed."""

SHOWN = 4


@dataclass(frozen=True)
class LabeledSet:
    """One split in memory: ``labels`` int [N], or 0/1 [N, C]; ``groups`` int [N] or None."""

    benchmark: Benchmark
    rows: Rows
    labels: np.ndarray
    groups: np.ndarray | None
    note: str


def open_labeled(suite_set: SuiteSet) -> LabeledSet:
    """Return the test split of a folder for classification.

    Class names and templates are those next to the data. Raises DataError when a label does not fit
    the class names or the kind of the set, a tar is damaged, or groups that a task needs are not
    there.
    """
    folder = suite_set.folder
    paths = tars_of(folder)
    benchmark, remarks = _benchmark(suite_set)
    try:
        rows, labels, _ = read_tar(folder, paths, benchmark)
    except DataError:
        if not benchmark.multilabel:
            _refuse_marks_only(paths, folder)
        raise
    if not len(rows):
        raise DataError(f"{paths[0].parent}: the tars hold no image. Fix: fetch them again")
    task = suite_set.task
    groups = None
    if task is not None and task.group is not None:
        groups = _groups(rows, task.group)
    absent = classes_without_images(benchmark.classes, labels)
    if absent:
        names = first_few([shown(name) for name in absent], SHOWN)
        remarks.append(
            f"{len(absent):,} of {len(benchmark.classes):,} classes have no image ({names})"
        )
    if task is not None and task.size != len(rows):
        remarks.append(f"{len(rows):,} of {task.size:,} images: split differs")
    if task is not None and task.classes not in (None, len(benchmark.classes)):
        remarks.append(f"{len(benchmark.classes):,} of {task.classes:,} classes")
    return LabeledSet(benchmark, rows, labels, groups, "; ".join(remarks))


def _benchmark(suite_set: SuiteSet) -> tuple[Benchmark, list[str]]:
    """Return the benchmark that the files next to the data make, and remarks on them."""
    folder = suite_set.folder
    classes = lines_of(folder / CLASS_FILE)
    if classes is None:
        raise DataError(
            f"{folder / CLASS_FILE}: not found; expected a class name a line, in the order of the"
            " labels. Fix: fetch it again"
        )
    remarks = []
    templates = _templates(folder)
    if templates is None:
        templates = (PLAIN_TEMPLATE,)
        remarks.append(f'no template file: the only prompt is "{PLAIN_TEMPLATE}"')
    is_multilabel = type_of(folder) == MULTILABEL
    benchmark = Benchmark(
        name=suite_set.key,
        title=suite_set.name,
        folders=(),
        metric="map_11_point" if is_multilabel else "accuracy",
        classes=classes,
        templates=templates,
        train=None,
        test=None,
        multilabel=is_multilabel,
        source=f"{CLASS_FILE} next to the data",
    )
    return benchmark, remarks


def _templates(folder: Path) -> tuple[str, ...] | None:
    """Return the templates next to the data, clip-benchmark's file first; None without a file."""
    for file in reversed(TEMPLATE_FILES):
        lines = lines_of(folder / file)
        if lines is not None:
            return tuple(template_of(line, folder / file) for line in lines)
    return None


def _refuse_marks_only(paths: Sequence[Path], folder: Path) -> None:
    """Raise DataError when the first image has marks of several classes in place of a label."""
    shard = TarShard(paths[0], paths[0].name, "image", Columns())
    for members in shard.members[:1]:
        if "cls" not in members and "npy" in members:
            raise DataError(
                f"{paths[0]}: its images have several labels (.npy) and no single one (.cls). Fix:"
                f" write {MULTILABEL} into {folder / 'dataset_type.txt'}"
            )


def _groups(rows: Rows, column: int) -> np.ndarray:
    """Return the group of each image, int64 [N]: a column of its ``.npy`` file."""
    groups: list[int] = []
    for shard in rows.shards:
        assert isinstance(shard, TarShard)
        for key, members in zip(shard.keys(), shard.members, strict=True):
            groups.append(_group(shard, key, members, column))
    return np.array(groups, dtype=np.int64)


def _group(shard: TarShard, key: str, members: dict, column: int) -> int:
    where = f"{shard.path}: {key}.npy"
    if "npy" not in members:
        raise DataError(
            f"{where}: not found, and it says to which group the image belongs. Fix: fetch the tar"
            " again"
        )
    try:
        values, _ = array_of(shard.member_bytes(members["npy"]))
    except (BadRow, ValueError) as error:
        raise DataError(
            f"{where}: no plain array of numbers ({shown(error)}); arrays of Python objects are not"
            " read. Fix: write it again with numpy.save"
        ) from error
    if values.ndim != 1 or len(values) <= column or values.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected whole numbers, more than {column} of them, found {values.dtype} of"
            f" shape {values.shape}. Fix: fetch the tar again"
        )
    return int(values[column])


def score_labeled(encoder: Encoder, suite_set: SuiteSet, store: Path, settings: Settings) -> Result:
    """Return the zero-shot result of a folder, with clip-benchmark's metrics and the task's.

    Embeddings are kept in (and taken from) the folder ``store``. Raises as :func:`open_labeled`,
    and DataError when no image can be read.
    """
    labeled = open_labeled(suite_set)
    benchmark = labeled.benchmark
    images, readable = image_features(encoder, benchmark, labeled.rows, store, settings)
    weights = prompt_weights(encoder, benchmark, store, settings)
    logits = images @ weights.T
    details: dict = {"classes": len(benchmark.classes), "templates": len(benchmark.templates)}
    n_images = len(labeled.labels)
    chance = None
    if benchmark.multilabel:
        main = MEAN_AP
        marks = labeled.labels[readable]
        values = {MEAN_AP: metrics.mean_average_precision(logits, marks)}
    else:
        main, values, as_wrong = _single(suite_set, labeled, logits, readable)
        if len(readable) < n_images:
            details[UNREADABLE_AS_WRONG] = as_wrong
        if main == ACC1:
            chance = 1 / len(benchmark.classes)
    if suite_set.task is not None and suite_set.task.chance is not None:
        chance = suite_set.task.chance
    return Result(
        task=ZERO_SHOT,
        dataset=suite_set.name,
        metrics=values,
        main_metric=main,
        samples=len(readable),
        unreadable=n_images - len(readable),
        chance=chance,
        note=labeled.note,
        details=details,
    )


def _single(
    suite_set: SuiteSet, labeled: LabeledSet, logits: np.ndarray, readable: np.ndarray
) -> tuple[str, dict[str, float], float]:
    """Return the main metric, all metrics, and the main one with unreadable images as wrong."""
    groups = labeled.groups
    groups_read = None if groups is None else groups[readable]
    answers = metrics.answers_of(logits, labeled.labels[readable], groups_read)
    names = [ACC1, ACC5, MEAN_PER_CLASS]
    if logits.shape[1] < FOR_ACC5:
        names.remove(ACC5)
    main = ACC1 if suite_set.task is None else suite_set.task.metric
    if main not in names:
        names.append(main)
    values = {name: METRICS[name](answers) for name in names}
    everything = metrics.with_unreadable(answers, readable, labeled.labels, groups)
    return main, values, METRICS[main](everything)
