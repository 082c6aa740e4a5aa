"""The two conventions by which ImageNet's variants are classified, and their class weights.

``own``: the classifier has the class names that a dataset gives itself, in the order of its
folders, as DIME-FM evaluates. ``masked``: it has the names of the 1000 classes of ImageNet-1k, of
which those that the dataset lacks are left out, as clip_benchmark and most others evaluate. Where
several of the 1000 classes are one class of the dataset, as in ObjectNet, the best of them counts
(Taori et al. 2020; Wortsman et al. 2022).

Sources: sunxm2357/DIME-FM, ``Evaluation/vision_benchmark/datasets/prompts.py``; LAION's
CLIP_benchmark 1.6.2, ``datasets/builder.py``; mlfoundations/wise-ft, ``src/datasets/objectnet.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.evaluate.benchmark import Benchmark, load, names_by_wnid
from dimefm.evaluate.classifier import probabilities
from dimefm.evaluate.features import prompt_weights
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder

OWN = "own"
MASKED = "masked"
CONVENTIONS = (OWN, MASKED)


@dataclass(frozen=True)
class Naming:
    """The names that a classifier has, and the classes that they stand for.

    ``names`` [M] may name one class several times; ``starts`` int64 [C] are the places of the first
    name of each class.
    """

    names: tuple[str, ...]
    starts: np.ndarray

    @property
    def is_one_to_one(self) -> bool:
        """Whether every class has one name."""
        return len(self.names) == len(self.starts)

    def of_classes(self, scores: np.ndarray) -> np.ndarray:
        """Return probabilities of the classes [n, C] from those of the names [n, M].

        A class is as probable as the best of its names.
        """
        if self.is_one_to_one:
            return scores
        best = np.maximum.reduceat(scores, self.starts, axis=1)
        return best / best.sum(axis=1, keepdims=True)


def naming(benchmark: Benchmark, convention: str) -> Naming:
    """Return the names of a benchmark's classes under a convention."""
    if convention == OWN or not benchmark.within:
        return Naming(benchmark.classes, np.arange(len(benchmark.classes)))
    name_of = names_by_wnid(load(benchmark.within))
    names: list[str] = []
    starts: list[int] = []
    for ids in benchmark.wnids:
        starts.append(len(names))
        names += [name_of[identity] for identity in ids]
    return Naming(tuple(names), np.array(starts))


def named(benchmark: Benchmark, convention: str) -> Benchmark:
    """Return the benchmark with the class names of a convention.

    A class of several names keeps its own.
    """
    names = naming(benchmark, convention)
    return dataclasses.replace(benchmark, classes=names.names) if names.is_one_to_one else benchmark


class Classifiers:
    """Class weights of one encoder for any number of benchmarks; a name is encoded once."""

    def __init__(self, encoder: Encoder, store: Path, settings: Settings):
        self._encoder = encoder
        self._store = store
        self._settings = settings
        self._weight_of: dict[Sequence[str], dict[str, np.ndarray]] = {}  # by templates

    def probabilities(
        self, images: np.ndarray, benchmark: Benchmark, convention: str
    ) -> np.ndarray:
        """Return probabilities [n, C] of images [n, D] for the classes of a benchmark."""
        names = naming(benchmark, convention)
        weights = self._weights(benchmark, names.names)
        return names.of_classes(probabilities(images, weights))

    def _weights(self, benchmark: Benchmark, names: tuple[str, ...]) -> np.ndarray:
        """Return class weights [M, D] of names, of which only new ones are encoded."""
        known = self._weight_of.setdefault(benchmark.templates, {})
        new = tuple(name for name in names if name not in known) if known else names
        if new:
            block = dataclasses.replace(benchmark, classes=new)
            weights = prompt_weights(self._encoder, block, self._store, self._settings)
            known.update(zip(new, weights, strict=True))
        return np.stack([known[name] for name in names])
