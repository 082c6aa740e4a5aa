"""Predict: the labels of image files, in order, whatever some of the files hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data.image_files import find_files
from dimefm.errors import DataError
from dimefm.models.classify import Classifier
from dimefm.models.model import Model


@dataclass(frozen=True)
class Prediction:
    """The best labels of an image file with their scores, or why it could not be read."""

    image: str
    labels: dict[str, float]
    error: str | None = None

    def to_json(self) -> dict:
        """Return plain values for JSON."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        labels = [{"label": label, "score": score} for label, score in self.labels.items()]
        return {"image": self.image, "labels": labels}


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Return image files and, in place of a folder, its image files at any depth, sorted.

    Raises DataError for a folder without images.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        names = find_files(path).images
        if not names:
            raise DataError(f"{path}: this folder holds no image. Fix: name another folder")
        files += [path / name for name in names]
    return files


def predict(
    model: Model, classifier: Classifier, files: Sequence[Path], top: int, batch_size: int
) -> Iterator[Prediction]:
    """Yield the ``top`` labels of each file, in order; ``batch_size`` files are encoded at once.

    A file that cannot be read yields its error, and the others are answered.
    """
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        rows, errors = _encoded(model, batch)
        rankings = iter(classifier.ranked(rows))
        for path in batch:
            if path in errors:
                yield Prediction(str(path), {}, errors[path])
                continue
            best = list(next(rankings).items())[:top]
            yield Prediction(str(path), dict(best))


def _encoded(model: Model, files: Sequence[Path]) -> tuple[np.ndarray, dict[Path, str]]:
    """Return the embeddings of the files that can be read, and the errors of the others."""
    try:
        return model.encode_image(files, len(files)), {}
    except DataError:
        pass  # at least one: each is read by itself
    rows = [np.empty((0, model.dim), dtype=np.float32)]
    errors: dict[Path, str] = {}
    for path in files:
        try:
            rows.append(model.encode_image([path], 1))
        except DataError as error:
            errors[path] = str(error)
    return np.concatenate(rows), errors
