"""From probabilities and labels to a :class:`Result`, the form of everything that is scored."""

from __future__ import annotations

import numpy as np

from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.metrics import METRICS, chance, with_unreadable_as_wrong
from dimefm.runs.scores import UNREADABLE_AS_WRONG, ZERO_SHOT, Result

__all__ = ["Result", "classification_result"]


def classification_result(
    benchmark: Benchmark,
    probabilities: np.ndarray,
    labels: np.ndarray,
    readable: np.ndarray,
    *,
    task: str = ZERO_SHOT,
    note: str = "",
) -> Result:
    """Score the probabilities [n, C] of a benchmark's images with the benchmark's metric.

    ``labels`` are those of all N images of the split, int [N] or 0/1 [N, C]; ``readable`` [n] are
    the numbers of the images that have probabilities. The metric is over these images; ``details``
    have its value with the others as wrong answers, where it has one. Raises DataError when the
    shapes do not fit.
    """
    readable_labels = labels[readable]
    value = METRICS[benchmark.metric](probabilities, readable_labels)
    details: dict[str, float] = {
        "classes": len(benchmark.classes),
        "templates": len(benchmark.templates),
    }
    if len(readable_labels) < len(labels):
        as_wrong = with_unreadable_as_wrong(benchmark.metric, probabilities, labels, readable)
        if as_wrong is not None:
            details[UNREADABLE_AS_WRONG] = as_wrong
    return Result(
        task=task,
        dataset=benchmark.name,
        metrics={benchmark.metric: float(value)},
        main_metric=benchmark.metric,
        samples=len(readable_labels),
        unreadable=len(labels) - len(readable_labels),
        chance=chance(benchmark.metric, len(benchmark.classes), readable_labels),
        note=note,
        details=details,
    )
