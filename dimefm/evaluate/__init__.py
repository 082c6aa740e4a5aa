"""Evaluation: datasets and their samples, zero-shot classification, retrieval, and metrics.

Calling the package scores a model, see :func:`evaluate`: ``dimefm.evaluate(model, root)``.

A metric is a pure function of scores and labels (:mod:`dimefm.evaluate.metrics`). A benchmark is a
card in ``benchmarks/`` (:mod:`dimefm.evaluate.benchmark`). The user's folders become samples and
labels in :mod:`dimefm.evaluate.datasets`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dimefm.runtime.verbs import make_callable

if TYPE_CHECKING:
    from dimefm.evaluate.result import Result
    from dimefm.models.model import Model


def evaluate(
    model: str | os.PathLike | Model,
    root: str | os.PathLike,
    *,
    datasets: Sequence[str] | None = None,
    out: str | os.PathLike | None = None,
    text_model: str | os.PathLike | None = None,
    preprocess: str | os.PathLike | None = None,
    layout: str | None = None,
    metric: str | None = None,
    decoder: str = "turbo",
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 256,
    workers: int = 2,
) -> list[Result]:
    """Score a model zero-shot on the datasets below ``root``, and return one result per dataset.

    ``model`` is what ``dimefm.load`` takes, or what it returned; ``text_model`` and ``preprocess``
    go with it. ``datasets`` are benchmarks or folders; without them every folder that a card claims
    is scored. ``metric`` replaces the metric of all of them, and ``decoder`` is ``"turbo"`` or
    ``"pil"``, open_clip's own to the bit. ``out`` keeps ``scores.json``, ``report.md``,
    ``per_class.csv``, ``wrong.jsonl`` and the features, so a second call is quick; without ``out``
    nothing is kept. ``result.metrics`` maps names to values in 0..1, and ``result.value`` is the
    main one.

    Raises ModelError when the model cannot be loaded, DataError when a dataset cannot be read or
    ``out`` cannot be written, and CacheError when another process writes to the kept features.

    Example::

        for result in dimefm.evaluate("runs/first", "datasets/", datasets=["cifar-10", "dtd"]):
            print(result.dataset, result.value)
    """
    from dimefm.evaluate import zero_shot
    from dimefm.models.model import Model, load

    if not isinstance(model, Model):
        model = load(model, device, precision, text_model, preprocess)
    names = None if datasets is None else list(datasets)
    return zero_shot.evaluate(
        model.encoder,
        Path(root),
        names=names,
        out=None if out is None else Path(out),
        layout=layout,
        metric=metric,
        decoder=decoder,
        batch_size=batch_size,
        workers=workers,
    )


make_callable(__name__, evaluate)
