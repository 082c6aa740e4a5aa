"""The classes that a model takes for others: the most frequent wrong pairs of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.evaluate.predictions import Predictions
from dimefm.runtime.printable import one_line
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.runtime.text import cut_in_the_middle

MOST = 10
"""Pairs that a table lists."""

COLUMNS = ("class", "taken for", "images", "of")
TEXT_COLUMNS = (0, 1)
LONGEST_NAME = 28
"""Characters of a class name in a terminal."""


@dataclass(frozen=True)
class WrongPair:
    """``images`` of the ``of`` readable images of class ``label`` are taken for ``predicted``."""

    label: str
    predicted: str
    images: int
    of: int


def most_confused(predictions: Predictions, most: int = MOST) -> list[WrongPair]:
    """Return the most frequent pairs of a class and the wrong class that its images are taken for.

    Pairs with equally many images stand in the order of the classes. Images with several labels
    have no such pairs.
    """
    benchmark = predictions.benchmark
    if benchmark.multilabel:
        return []
    labels = predictions.labels[predictions.readable]
    predicted = predictions.probabilities.argmax(axis=1)
    n_classes = len(benchmark.classes)
    is_wrong = predicted != labels
    numbers, counts = np.unique(
        labels[is_wrong] * n_classes + predicted[is_wrong], return_counts=True
    )
    images_of_class = np.bincount(labels, minlength=n_classes)
    pairs = []
    for place in np.argsort(-counts, kind="stable")[:most]:
        label, guess = divmod(int(numbers[place]), n_classes)
        pair = WrongPair(
            benchmark.classes[label],
            benchmark.classes[guess],
            int(counts[place]),
            int(images_of_class[label]),
        )
        pairs.append(pair)
    return pairs


def terminal_table(pairs: Sequence[WrongPair]) -> list[str]:
    """Return the pairs as lines of an aligned table of at most 80 columns."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for pair in pairs:
        label, predicted, *counts = _cells(pair)
        cut = [cut_in_the_middle(name, LONGEST_NAME) for name in (label, predicted)]
        rows.append((*cut, *counts))
    return aligned(rows, TEXT_COLUMNS)


def page_table(pairs: Sequence[WrongPair]) -> list[str]:
    """Return the pairs as lines of a Markdown table; names are not yet safe for Markdown."""
    return markdown_table([COLUMNS, *(_cells(pair) for pair in pairs)], TEXT_COLUMNS)


def _cells(pair: WrongPair) -> tuple[str, ...]:
    return (
        one_line(pair.label),
        one_line(pair.predicted),
        f"{pair.images:,}",
        f"{pair.of:,}",
    )
