"""Zero-shot classification from embeddings, with numpy only.

Prompts become class weights, and images become probabilities of the classes.

Source: Elevater_Toolkit_IC ``evaluation/feature.py:546-549`` and
``evaluation/clip_zeroshot_evaluator.py:17-20``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dimefm.errors import DataError
from dimefm.runtime.vectors import row_without_direction, unit_rows

LOGITS_AT_ONCE = 1 << 26
"""Logits of images and classes from which on images are scored in blocks, to save memory."""


def class_weights(
    prompt_embeddings: Sequence[np.ndarray] | np.ndarray, *, first_class: int = 0
) -> np.ndarray:
    """Return unit class weights [C, D] from the embeddings of each class's prompts.

    ``prompt_embeddings`` are C arrays of [P_c, D]. Each prompt embedding is normalised, the prompts
    of a class averaged, and the mean normalised again. float64 input stays float64, anything else
    becomes float32. Messages count classes from ``first_class``. Raises DataError for a class
    without prompts, or an embedding of length 0.
    """
    if isinstance(prompt_embeddings, np.ndarray):
        if prompt_embeddings.ndim == 3 and prompt_embeddings.size:
            return _weights_of_equal_counts(_as_float(prompt_embeddings), first_class)
    weights = []
    for number, prompts in enumerate(prompt_embeddings, start=first_class):
        prompts = _as_float(prompts)
        if prompts.ndim != 2 or not len(prompts):
            raise DataError(
                f"class {number}: expected prompts [P, D], found shape {prompts.shape}. Fix: add a"
                " template"
            )
        unit_prompts = _unit(prompts, f"class {number}, prompt")
        mean = unit_prompts.mean(axis=0)
        [weight] = _unit(mean[None], f"class {number}, mean")
        weights.append(weight)
    if not weights:
        raise DataError("zero-shot: no classes were given. Fix: add a classnames.txt")
    return np.stack(weights)


def _weights_of_equal_counts(embeddings: np.ndarray, first_class: int) -> np.ndarray:
    """Return the class weights of embeddings [C, P, D], bit for bit as class by class."""
    n_classes, n_prompts, dim = embeddings.shape
    rows = embeddings.reshape(-1, dim)
    unusable = row_without_direction(rows)
    if unusable is not None:
        place, length = unusable
        number, prompt = divmod(place, n_prompts)
        raise _no_direction(f"class {first_class + number}, prompt", prompt, length)
    unit_prompts = unit_rows(rows, eps=0).reshape(n_classes, n_prompts, dim)
    means = unit_prompts.mean(axis=1)
    unusable = row_without_direction(means)
    if unusable is not None:
        number, length = unusable
        raise _no_direction(f"class {first_class + number}, mean", 0, length)
    return unit_rows(means, eps=0)


def probabilities(images: np.ndarray, weights: np.ndarray, scale: float = 100.0) -> np.ndarray:
    """Return softmax probabilities [n, C] of images [n, D] under class weights [C, D].

    Images are normalised here; logits are ``scale`` times the cosine. ELEVATER always takes 100,
    whatever scale the tower learned. Computed in float32, or float64 when either input is. Raises
    DataError when dimensions differ, or an image embedding has length 0.
    """
    images = _as_float(images)
    weights = _as_float(weights)
    are_matrices = images.ndim == 2 and weights.ndim == 2
    if not are_matrices or images.shape[1] != weights.shape[1]:
        raise DataError(
            f"zero-shot: image embeddings {images.shape} and class weights {weights.shape} do not"
            " share a dimension. Fix: encode both with the two towers of one model"
        )
    scaled = scale * _unit(images, "image")
    rows_at_once = max(1, LOGITS_AT_ONCE // max(1, len(weights)))
    if len(scaled) <= rows_at_once:
        return softmax(scaled @ weights.T)
    blocks = np.empty((len(scaled), len(weights)), np.result_type(scaled, weights))
    for start in range(0, len(scaled), rows_at_once):
        rows = slice(start, start + rows_at_once)
        blocks[rows] = softmax(scaled[rows] @ weights.T)
    return blocks


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [n, C] of logits [n, C], in their precision."""
    highest = logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits - highest)
    total = exponentials.sum(axis=1, keepdims=True)
    return exponentials / total


def _as_float(values: np.ndarray) -> np.ndarray:
    """Return the values as float64 when they are, else as float32."""
    values = np.asarray(values)
    if values.dtype == np.float64:
        return values
    return values.astype(np.float32)


def _unit(embeddings: np.ndarray, name: str) -> np.ndarray:
    """Return embeddings [n, D] at unit length, without an epsilon; ``name`` is for the error."""
    unusable = row_without_direction(embeddings)
    if unusable is not None:
        first, length = unusable
        raise _no_direction(name, first, length)
    return unit_rows(embeddings, eps=0)


def _no_direction(name: str, number: int, length: float) -> DataError:
    return DataError(f"zero-shot: {name} {number} has length {length}. Fix: encode it again")
