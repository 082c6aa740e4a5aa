"""Class probabilities that an evaluation keeps: a file for each dataset and task.

``OUT/predictions/<dataset>-<task>.npz`` is a NumPy archive without pickled objects. Its arrays are
the fields of :class:`KeptPredictions`; lists of texts are JSON in an array of bytes. So two models
can be compared image by image, and a submission be written, without the models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.cache.manifest import EncoderCard
from dimefm.data import Rows
from dimefm.errors import DataError
from dimefm.evaluate.predictions import Predictions
from dimefm.runtime.printable import shown
from dimefm.storage.files import write_bytes

FOLDER = "predictions"
LONGEST_NAME = 100
"""Bytes of a dataset's name in the name of a file."""

LONGEST_REASON = 200
"""Characters of another library's message."""

ZERO_SHOTS = 0
"""``shots`` of a task that does not train."""

ALL_IMAGES = -1
"""``shots`` of a task that trains on all images."""


@dataclass(frozen=True)
class KeptPredictions:
    """Probabilities of one task on one dataset's test images, for each seed.

    ``probabilities`` float32 [S, n, C] are those of S seeds for n readable images and the C
    ``classes``. ``labels`` are int64 [n], or 0/1 [n, C]. ``keys`` and ``sources`` name the n
    images: the key of the row, and the file or folder that holds it. ``readable`` int64 [n] are
    the numbers of the images among all ``images`` of the split. ``trainable_parameters`` int64 [S]
    are the weights that were trained, 0 for zero-shot. ``shots`` is 0 for zero-shot, -1 for all
    training images, else the number per class. ``metric`` is the one of the dataset.

    ``model`` and ``weights_sha256`` are those of the encoder, "" when unknown. ``protocol`` is the
    one of a probe, "" for any other task.
    """

    dataset: str
    task: str
    metric: str
    shots: int
    seeds: np.ndarray
    trainable_parameters: np.ndarray
    classes: list[str]
    probabilities: np.ndarray
    labels: np.ndarray
    keys: list[str]
    sources: list[str]
    readable: np.ndarray
    images: int
    model: str = ""
    weights_sha256: str = ""
    protocol: str = ""


UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    MemoryError,
    zipfile.BadZipFile,
)
"""What NumPy raises for a file that is no archive, or a damaged one."""

TEXTS = ("classes", "keys", "sources")
FIELDS = tuple(KeptPredictions.__annotations__)


def of_zero_shot(predictions: Predictions, task: str) -> KeptPredictions:
    """Return the predictions of a task that does not train, in the form that is kept."""
    return with_seeds(
        predictions,
        task,
        probabilities=predictions.probabilities[None],
        seeds=[0],
        trainable_parameters=[0],
        shots=ZERO_SHOTS,
    )


def with_seeds(
    predictions: Predictions,
    task: str,
    *,
    probabilities: np.ndarray,
    seeds: list[int],
    trainable_parameters: list[int],
    shots: int,
) -> KeptPredictions:
    """Return probabilities [S, n, C] of several seeds in the form that is kept.

    ``predictions`` say which images and classes they are of.
    """
    readable = np.asarray(predictions.readable, dtype=np.int64)
    keys, sources = _names(predictions.rows, readable)
    return KeptPredictions(
        dataset=predictions.benchmark.name,
        task=task,
        metric=predictions.benchmark.metric,
        shots=shots,
        seeds=np.array(seeds, dtype=np.int64),
        trainable_parameters=np.array(trainable_parameters, dtype=np.int64),
        classes=list(predictions.benchmark.classes),
        probabilities=np.asarray(probabilities, dtype=np.float32),
        labels=np.asarray(predictions.labels[readable], dtype=np.int64),
        keys=keys,
        sources=sources,
        readable=readable,
        images=len(predictions.labels),
    )


def _names(rows: Rows, readable: np.ndarray) -> tuple[list[str], list[str]]:
    """Return the keys and the sources of some rows."""
    all_keys: list[str] = []
    all_sources: list[str] = []
    for shard in rows.shards:
        all_keys += shard.keys()
        all_sources += [shard.name] * len(shard)
    return [all_keys[row] for row in readable], [all_sources[row] for row in readable]


def file_name(dataset: str, task: str) -> str:
    """Return the name of the file for a dataset and a task, such as ``dtd-linear-probe.npz``."""
    task_words = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
    encoded = dataset.encode(errors="surrogateescape").replace(b"/", b"-")
    if len(encoded) > LONGEST_NAME:
        digest = hashlib.sha256(encoded).hexdigest()[:12]
        short_name = encoded[:LONGEST_NAME].decode(errors="ignore")
        encoded = f"{short_name}-{digest}".encode()
    return f"{os.fsdecode(encoded)}-{task_words}.npz"


def remove_others(out: Path, weights_sha256: str | None) -> None:
    """Remove the predictions of other weights from ``out``, and files that cannot be read.

    So a folder that is used for another model holds predictions of that model only.
    """
    for path in sorted((out / FOLDER).glob("*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                is_of_model = str(arrays["weights_sha256"]) == (weights_sha256 or "")
        except UNREADABLE:
            is_of_model = False
        if not is_of_model:
            path.unlink(missing_ok=True)


def keep(out: Path, predictions: KeptPredictions, card: EncoderCard, *, protocol: str = "") -> Path:
    """Write predictions of the encoder with this ``card`` into ``out/predictions``.

    Returns the file.
    """
    predictions = dataclasses.replace(
        predictions,
        model=card.name,
        weights_sha256=card.weights_sha256 or "",
        protocol=protocol,
    )
    path = out / FOLDER / file_name(predictions.dataset, predictions.task)
    arrays = {}
    for name in FIELDS:
        value = getattr(predictions, name)
        if name in TEXTS:
            value = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        arrays[name] = np.asarray(value)
    file = io.BytesIO()
    np.savez(file, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())
    return path


def read(path: Path) -> KeptPredictions:
    """Return the predictions in a file; raise DataError when it cannot be read as such."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            content: dict[str, Any] = {name: arrays[name] for name in FIELDS}
        for name in TEXTS:
            content[name] = json.loads(content[name].tobytes())
        return _checked(content)
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as predictions ({shown(error, LONGEST_REASON)}). Fix: evaluate"
            " again, or remove the file"
        ) from error


def _checked(content: dict[str, Any]) -> KeptPredictions:
    """Return the predictions that arrays hold; raise ValueError when their lengths do not fit."""
    n_seeds, n_images, n_classes = content["probabilities"].shape
    lengths = {
        "seeds": n_seeds,
        "trainable_parameters": n_seeds,
        "classes": n_classes,
        "labels": n_images,
        "keys": n_images,
        "sources": n_images,
        "readable": n_images,
    }
    for name, length in lengths.items():
        if len(content[name]) != length:
            raise ValueError(f"{name} has {len(content[name])} entries, expected {length}")
    return KeptPredictions(
        dataset=str(content["dataset"]),
        task=str(content["task"]),
        metric=str(content["metric"]),
        shots=int(content["shots"]),
        images=int(content["images"]),
        model=str(content["model"]),
        weights_sha256=str(content["weights_sha256"]),
        protocol=str(content["protocol"]),
        **{name: content[name] for name in (*lengths, "probabilities")},
    )
