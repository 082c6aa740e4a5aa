"""Class embeddings that are computed before a deployment, which then needs no text tower.

``labels.json`` in an export is one JSON object:

==================  ============================================================================
``labels``          the names of K classes
``embeddings``      K lists of D numbers: the class embeddings, each of length 1
``templates``       the prompts, with ``{label}`` for the name; their embeddings are averaged
``logit_scale``     the model's factor on cosines, before a softmax over the classes
``logit_bias``      what a SigLIP adds behind that factor, else null
``model``           the name of the model whose embeddings they are
==================  ============================================================================

``labels.safetensors`` holds the same embeddings as the tensor ``embeddings`` [K, D] in float32; its
metadata has ``labels`` and ``templates`` as JSON.

A user gives class names, a line each or as a JSON list, or ``{"labels": [...], "templates":
[...]}``; or embeddings that were computed before, as either of the two files above.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dimefm.errors import DataError, ModelError
from dimefm.models.classify import TEMPLATES, check_labels
from dimefm.models.model import Model
from dimefm.runs.folder import save_tensors
from dimefm.storage.small_files import Unreadable, read_json, read_text

JSON, TENSORS = "labels.json", "labels.safetensors"
MOST_BYTES = 256 << 20  # of a file of embeddings
DIGITS = 8  # of a number in JSON; float32 has seven


@dataclass(frozen=True)
class Labels:
    """K class names with their unit embeddings, float32 [K, D].

    ``templates`` are empty for embeddings that came from elsewhere without them.
    """

    names: tuple[str, ...]
    embeddings: np.ndarray
    templates: tuple[str, ...] = TEMPLATES

    def write(self, folder: Path, model: Model) -> None:
        """Write ``labels.json`` and ``labels.safetensors``, the embeddings of ``model``."""
        rows = []
        for row in self.embeddings:
            rows.append([round(float(value), DIGITS) for value in row])
        content = {
            "model": model.name,
            "labels": list(self.names),
            "templates": list(self.templates),
            "logit_scale": model.logit_scale,
            "logit_bias": model.encoder.card.logit_bias,
            "embeddings": rows,
        }
        text = json.dumps(content, ensure_ascii=False)
        (folder / JSON).write_text(text + "\n", encoding="utf-8")
        marks = {
            "labels": json.dumps(self.names, ensure_ascii=False),
            "templates": json.dumps(self.templates, ensure_ascii=False),
        }
        save_tensors({"embeddings": torch.from_numpy(self.embeddings)}, folder / TENSORS, marks)


def read(path: Path, model: Model) -> Labels:
    """Return the labels of a file; names are embedded with ``model``.

    Raises ModelError for a file that holds neither names nor embeddings of the model's dimension.
    """
    try:
        if path.suffix == ".safetensors":
            return _from_tensors(path, model)
        if path.suffix == ".json":
            return _from_json(path, model)
        lines = read_text(path).splitlines()
    except (OSError, Unreadable, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read: {reason}. Fix: check the file") from error
    names = [line.strip() for line in lines if line.strip()]
    return _embedded(path, names, TEMPLATES, model)


def _from_json(path: Path, model: Model) -> Labels:
    content = read_json(path, MOST_BYTES)
    if isinstance(content, list):
        return _embedded(path, content, TEMPLATES, model)
    if not isinstance(content, dict) or "labels" not in content:
        raise ModelError(f"{path}: has no 'labels'. Fix: write a list of class names")
    names = content["labels"]
    if "embeddings" not in content:
        templates = _templates(path, content.get("templates") or TEMPLATES)
        return _embedded(path, names, templates, model)
    templates = _templates(path, content.get("templates") or ())
    try:
        rows = np.asarray(content["embeddings"], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: 'embeddings' are no lists of numbers of one length. Fix: write it again"
        ) from error
    return _checked(path, names, rows, templates, model)


def _from_tensors(path: Path, model: Model) -> Labels:
    with safe_open(path, "numpy") as file:
        marks = file.metadata() or {}
        if "embeddings" not in file.keys() or "labels" not in marks:
            raise ModelError(
                f"{path}: expected the tensor 'embeddings' and the names as JSON in the metadata"
                " 'labels'. Fix: write it again"
            )
        rows = file.get_tensor("embeddings").astype(np.float32)
    try:
        names = json.loads(marks["labels"])
        templates = json.loads(marks.get("templates", "[]"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: the metadata 'labels' or 'templates' are no JSON. Fix: write it again"
        ) from error
    return _checked(path, names, rows, _templates(path, templates), model)


def _checked(
    path: Path, names: Any, rows: np.ndarray, templates: tuple[str, ...], model: Model
) -> Labels:
    """Return labels with given embeddings; raise ModelError where they do not fit."""
    with _naming(path):
        labels = check_labels(_strings(names))
    expected = (len(labels), model.dim)
    if rows.shape != expected:
        raise ModelError(
            f"{path}: embeddings of shape {list(rows.shape)}, expected {list(expected)}: one of the"
            " model's dimension for each label. Fix: embed the labels with this model"
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > 0)
    if not usable.all():
        first = int(np.argmin(usable[:, 0]))
        raise ModelError(
            f"{path}, label {first}: its embedding has no direction. Fix: embed it again"
        )
    return Labels(labels, rows / lengths, templates)


def _embedded(path: Path, names: Any, templates: tuple[str, ...], model: Model) -> Labels:
    """Return labels whose prompts are embedded with the model."""
    with _naming(path):
        classifier = model.classifier(_strings(names), _strings(templates))
    return Labels(classifier.labels, classifier.embeddings.astype(np.float32), templates)


def _templates(path: Path, values: Any) -> tuple[str, ...]:
    """Return templates that came from a file; raise ModelError for anything but texts."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ModelError(
            f"{path}: 'templates' are {str(values)[:60]}, expected a list of sentences. Fix: write"
            ' e.g. ["a photo of a {label}."]'
        )
    return tuple(values)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what is said about its labels."""
    try:
        yield
    except DataError as error:
        raise ModelError(f"{path}: {error}") from error


def _strings(values: Any) -> list[str]:
    """Return names of classes that came from a file; raise DataError for anything else."""
    if not isinstance(values, list | tuple):
        raise DataError("'labels' is no list. Fix: write a list of class names")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise DataError(
                f"label {number}: is {str(value)[:60]}, expected a text. Fix: write it in quotes"
            )
    return list(values)


def describe(labels: Labels) -> dict[str, Any]:
    """Return what an export's record says about its labels."""
    return {
        "classes": len(labels.names),
        "templates": list(labels.templates),
        "files": [JSON, TENSORS],
    }
