"""The file that ELEVATER's server takes: class probabilities of all test images, in its order.

Source: Elevater_Toolkit_IC ``commands/zeroshot.py`` and ``commands/prepare_submit.py`` for the
form, ``common/prediction_submission.py`` for the checks of the server, and its page on the format
of submissions for the numbers of parameters.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from dimefm.errors import DataError
from dimefm.evaluate import kept_predictions
from dimefm.evaluate.benchmark import Benchmark, CardIndex, load, suite
from dimefm.evaluate.datasets import class_names, vision_datasets
from dimefm.evaluate.datasets.layouts import PARENT, SPLITS
from dimefm.evaluate.kept_predictions import ZERO_SHOTS, KeptPredictions
from dimefm.evaluate.metrics import METRICS
from dimefm.runs.scores import SCORES
from dimefm.runtime.printable import shown
from dimefm.runtime.text import first_few
from dimefm.storage.files import part_of
from dimefm.storage.small_files import read_json

MEMBER = "all_predictions.json"
DECIMALS = 6
SUM_TOLERANCE = 1e-3
AVERAGE_CLASSES = 57.55
"""Mean number of classes of the 20 sets, by which the server counts the weights of heads."""

ZIP_MARK = ".zip@"
"""Stands in the keys of images that the official index names."""

SHOWN = 4


@dataclass(frozen=True)
class Size:
    """Weights of a model: of the image tower, of the whole model, and of a head for the 20 sets."""

    name: str
    visual: int
    backbone: int
    dim: int


@dataclass(frozen=True)
class Entry:
    """The predictions of one dataset as the server takes them.

    ``probabilities`` float64 [S, N, C] are of S seeds, all N test images in the order of the
    official index where ``order`` says so, and the classes in the order of the card. ``filled`` of
    the images could not be read; their classes are equally probable. ``score`` is the metric over
    the readable images, 0 to 1, averaged over the seeds.
    """

    card: Benchmark
    task: str
    shots: int
    seeds: list[int]
    trainable: float
    probabilities: np.ndarray
    filled: int
    order: str
    score: float

    def head(self, size: Size) -> dict:
        """Return what the entry says besides its predictions."""
        is_zero_shot = self.shots == ZERO_SHOTS
        head = 0 if is_zero_shot else round(size.dim * AVERAGE_CLASSES)
        return {
            "model_name": size.name,
            "dataset_name": self.card.name,
            "num_trainable_params": self.trainable,
            "num_params": size.backbone + head,
            "num_visual_params": size.visual,
            "num_backbone_params": size.backbone,
            "n_shot": self.shots,
            "rnd_seeds": self.seeds,
        }


OFFICIAL = "official"
BY_NAME = "by name"
UNPROVEN = "unproven"


def parameter_efficiency(mean: float, trainable: float) -> float:
    """Return the score of parameter efficiency, mean * exp(-log10(trainable / 1e8 + 1)).

    The formula is recalled from the benchmark's rules and was not compared with the server.
    """
    return mean * math.exp(-math.log10(trainable / 1e8 + 1))


def size_of(folder: Path, name: str | None = None) -> Size:
    """Return the size of the model whose ``scores.json`` lies in a folder."""
    path = folder / SCORES
    try:
        content = read_json(path)
        encoder = content.get("encoder") or content
        visual = int(encoder["image_parameters"])
        text = int(encoder["text_parameters"])
        model = name or PurePosixPath(str(content["model"])).name
        return Size(model, visual, visual + text, int(encoder.get("dim", 0)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: does not say how large the model is ({shown(error, 100)}). Fix: evaluate"
            " again with this --out"
        ) from error


def read_folders(
    folders: Sequence[Path], task: str | None, datasets: Sequence[str] = ()
) -> dict[str, list[KeptPredictions]]:
    """Return dataset -> its predictions of one task in all folders, of ``datasets`` if any.

    Raises DataError when a folder holds none, several tasks and ``task`` names none of them, or
    predictions of several models or protocols.
    """
    found: list[KeptPredictions] = []
    for folder in folders:
        paths = sorted((folder / kept_predictions.FOLDER).glob("*.npz"))
        if not paths:
            raise DataError(
                f"{folder}: no {kept_predictions.FOLDER}/*.npz. Fix: give the --out of dimefm eval"
                " elevater"
            )
        found += [kept_predictions.read(path) for path in paths]
    tasks = list(dict.fromkeys(kept.task for kept in found))
    if task is None and len(tasks) > 1:
        raise DataError(
            f"{folders[0]}: predictions of {len(tasks)} tasks ({first_few(tasks, SHOWN)}), and a"
            " submission has one. Fix: name it with --task"
        )
    chosen = task or tasks[0]
    if chosen not in tasks:
        raise DataError(
            f"{folders[0]}: no predictions of '{chosen}'; expected {first_few(tasks, SHOWN)}"
        )
    by_dataset: dict[str, list[KeptPredictions]] = {}
    for kept in found:
        if kept.task == chosen and (not datasets or kept.dataset in datasets):
            by_dataset.setdefault(kept.dataset, []).append(kept)
    absent = [name for name in datasets if name not in by_dataset]
    if absent:
        raise DataError(
            f"{folders[0]}: no predictions of {first_few(absent, SHOWN)}. Fix: evaluate on it, or"
            " remove it from --datasets"
        )
    _refuse_several_models([part for parts in by_dataset.values() for part in parts])
    return by_dataset


def _refuse_several_models(parts: Sequence[KeptPredictions]) -> None:
    """Raise DataError when predictions are of other weights, or of another protocol."""
    first = parts[0]
    for part in parts:
        if part.weights_sha256 != first.weights_sha256 or part.protocol != first.protocol:
            raise DataError(
                f"{part.dataset}: predictions of {shown(part.model)} {part.protocol}, and of"
                f" {shown(first.model)} {first.protocol} for {first.dataset}. Fix: give folders of"
                " one model and protocol"
            )


def entry_of(parts: Sequence[KeptPredictions], index: Sequence[str] | None) -> Entry:
    """Return the entry of one dataset from its predictions, with their seeds merged.

    ``index`` are the images of the official test split in order. Raises DataError for predictions
    that do not fit together, or that the server would refuse.
    """
    card = load(parts[0].dataset)
    _refuse_mixture(parts)
    first = parts[0]
    columns = class_names.numbers(first.classes, card.classes, card.aliases, card.name)
    if len(columns) != len(card.classes):
        raise DataError(
            f"{card.name}: predictions of {len(columns)} classes, expected {len(card.classes)}."
            " Fix: evaluate without a classnames.txt"
        )
    rows, order = _rows(first, card, index)
    filled = card.test - len(rows) if card.test is not None else 0
    seeds: list[int] = []
    blocks = []
    values = []
    for part in parts:
        seeds += [int(seed) for seed in part.seeds]
        for probabilities in part.probabilities:
            values.append(METRICS[part.metric](probabilities, part.labels))
            blocks.append(_placed(probabilities, rows, columns, card))
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"{card.name}: the seeds {first_few(seeds, SHOWN)} are not all different. Fix: give"
            " each folder once"
        )
    trainable = float(np.mean(np.concatenate([part.trainable_parameters for part in parts])))
    stacked = np.stack(blocks)
    check(stacked, card)
    score = float(np.mean(values))
    return Entry(card, first.task, first.shots, seeds, trainable, stacked, filled, order, score)


def _refuse_mixture(parts: Sequence[KeptPredictions]) -> None:
    """Raise DataError when predictions of one dataset are of other images, classes or shots."""
    first = parts[0]
    for part in parts[1:]:
        same = part.shots == first.shots and part.classes == first.classes
        if not same or part.keys != first.keys or part.images != first.images:
            raise DataError(
                f"{first.dataset}: predictions in several folders are of other images, classes or"
                " shots. Fix: evaluate them on the same data, or name one folder"
            )


def _rows(
    kept: KeptPredictions, card: Benchmark, index: Sequence[str] | None
) -> tuple[np.ndarray, str]:
    """Return the row of each readable image in the submission, and how the order is known."""
    if card.test is None or kept.images != card.test:
        raise DataError(
            f"{card.name}: predictions of {kept.images} test images, and the server expects"
            f" {card.test}. Fix: evaluate on the published test split, or name the others with"
            " --datasets"
        )
    if index is not None:
        return _by_name(kept, card, index), BY_NAME
    are_official = bool(kept.keys) and all(ZIP_MARK in key for key in kept.keys)
    return np.asarray(kept.readable), OFFICIAL if are_official else UNPROVEN


def _by_name(kept: KeptPredictions, card: Benchmark, index: Sequence[str]) -> np.ndarray:
    """Return the place in the official index of each image, by its path or its file name."""
    if len(index) != card.test:
        raise DataError(
            f"{card.name}: the index lists {len(index)} images, expected {card.test}. Fix: give the"
            " index of the published test split"
        )
    for simplify in (_whole, _file_name):
        places: dict[str, list[int]] = {}
        for place, name in enumerate(index):
            places.setdefault(simplify(name), []).append(place)
        names = [simplify(key) for key in kept.keys]
        are_known = all(len(places.get(name, ())) == 1 for name in names)
        if are_known and len(set(names)) == len(names):
            return np.array([places[name][0] for name in names], dtype=np.int64)
    unknown = [key for key in kept.keys if _file_name(key) not in places]
    example = shown((unknown or kept.keys)[0])
    raise DataError(
        f"{card.name}: {len(unknown)} of {len(kept.keys)} images have no name of the official"
        f" index, or names are shared, e.g. {example}. Fix: evaluate on the vision-datasets"
        " layout, or leave out --index"
    )


def _whole(name: str) -> str:
    return name.rpartition("@")[2]


def _file_name(name: str) -> str:
    """Return the name of an image without its folders and its ending."""
    return PurePosixPath(_whole(name)).stem


def _placed(
    probabilities: np.ndarray, rows: np.ndarray, columns: np.ndarray, card: Benchmark
) -> np.ndarray:
    """Return probabilities [N, C] in the order of the server; images without any have 1/C."""
    n_classes = len(card.classes)
    placed = np.full((card.test or 0, n_classes), 1 / n_classes)
    inner = np.empty((len(rows), n_classes))
    inner[:, columns] = probabilities
    placed[rows] = inner
    return np.round(placed, DECIMALS)


def check(probabilities: np.ndarray, card: Benchmark) -> None:
    """Raise DataError where the server would refuse probabilities [S, N, C] of a dataset."""
    expected = (card.test, len(card.classes))
    if probabilities.ndim != 3 or probabilities.shape[1:] != expected:
        raise DataError(
            f"{card.name}: predictions of the shape {probabilities.shape}, expected (seeds,"
            f" {expected[0]}, {expected[1]}). Fix: evaluate on the published test split"
        )
    if not np.isfinite(probabilities).all():
        raise DataError(f"{card.name}: a prediction is not finite. Fix: evaluate again")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise DataError(
            f"{card.name}: predictions from {probabilities.min():.3g} to"
            f" {probabilities.max():.3g}, expected 0 to 1. Fix: give probabilities, not logits"
        )
    if card.multilabel:
        return
    sums = probabilities.sum(axis=2)
    wrong = np.argwhere(np.abs(sums - 1) > SUM_TOLERANCE)
    if len(wrong):
        seed, image = wrong[0]
        raise DataError(
            f"{card.name}, image {image}: its probabilities add up to {sums[seed, image]:.4f},"
            " expected 1. Fix: give probabilities of all classes"
        )


def official_index(root: Path, name: str) -> list[str] | None:
    """Return the test images that the index of a dataset lists below ``root``, None without one."""
    cards = CardIndex()
    for parent in (root, root / PARENT):
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            paths = []
            if folder.is_dir() and cards.of(folder.name) == name:
                paths = vision_datasets.locate(folder, SPLITS["test"])
            if paths:
                return vision_datasets.files(folder, paths[0])
    return None


def entries_of(
    by_dataset: Mapping[str, Sequence[KeptPredictions]], index_root: Path | None
) -> tuple[list[Entry], list[str]]:
    """Return the entries of the sets of ELEVATER, in their order, and the names of other sets."""
    names = [name for name in (*suite(), "imagenet-1k") if name in by_dataset]
    entries = []
    for name in names:
        index = None if index_root is None else official_index(index_root, name)
        entries.append(entry_of(by_dataset[name], index))
    return entries, [name for name in by_dataset if name not in names]


def write(out: Path, entries: Sequence[Entry], size: Size) -> None:
    """Write the zip file of a submission; it has its name only when it is whole."""
    part = part_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(MEMBER, "w", force_zip64=True) as file:
                file.write(b'{"data": [')
                for number, entry in enumerate(entries):
                    file.write(b", " if number else b"")
                    _write_entry(file, entry, size)
                file.write(b"]}")
        os.replace(part, out)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}). Fix: choose another --out"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_one(path: Path, entry: Entry, size: Size) -> None:
    """Write the file of one dataset, as the toolkit's ``zeroshot.py`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        _write_entry(file, entry, size)


def _write_entry(file: IO[bytes], entry: Entry, size: Size) -> None:
    """Write an entry row by row: the text of all of them is long."""
    head = json.dumps(entry.head(size))
    file.write(f'{head[:-1]}, "predictions": ['.encode())
    for number, rows in enumerate(entry.probabilities):
        file.write(b", [" if number else b"[")
        for text in _texts(rows):
            file.write(text)
        file.write(b"]")
    file.write(b"]}")


def _texts(rows: np.ndarray) -> Iterator[bytes]:
    for number, row in enumerate(rows):
        comma = ", " if number else ""
        yield f"{comma}{json.dumps(row.tolist())}".encode()
