"""Retrieval on clip-benchmark's folders, under the names of its metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dimefm.evaluate import retrieval
from dimefm.evaluate.datasets.captions import open_pairs
from dimefm.evaluate.datasets.captions.pair_set import PairSet
from dimefm.evaluate.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from dimefm.evaluate.retrieval_model import evaluate_retrieval
from dimefm.evaluate.suites.folders import RETRIEVAL as RETRIEVAL_TYPE
from dimefm.evaluate.suites.folders import SuiteSet, tars_of, type_of
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import Result, recall_name

NAMES = {TEXT_TO_IMAGE: "image_retrieval_recall", IMAGE_TO_TEXT: "text_retrieval_recall"}
"""Direction of a search -> its name in clip-benchmark, which is that of what is searched for."""

MAIN = "image_retrieval_recall@5"
MEAN_AT_1 = "mean_recall@1"


def score_captions(
    encoder: Encoder, suite_set: SuiteSet, store: Path, settings: Settings
) -> Result:
    """Return recall at 1, 5 and 10 in both directions, and their mean at 1 for a DataComp task.

    Raises DataError as :func:`~dimefm.evaluate.retrieval_model.evaluate_retrieval`.
    """
    pairs = _pairs(suite_set)
    result = evaluate_retrieval(encoder, pairs, store, settings)
    values = {}
    for k in retrieval.AT:
        for direction, name in NAMES.items():
            values[f"{name}@{k}"] = result.metrics[recall_name(direction, k)]
    main = MAIN
    task = suite_set.task
    note = result.note
    if task is not None:
        main = MEAN_AT_1
        values[MEAN_AT_1] = (
            values["image_retrieval_recall@1"] + values["text_retrieval_recall@1"]
        ) / 2
        if task.size != len(pairs):
            note = "; ".join(filter(None, (note, f"{len(pairs):,} of {task.size:,} images")))
    return dataclasses.replace(
        result,
        dataset=suite_set.name,
        metrics=values,
        main_metric=main,
        chance=None,
        note=note,
    )


def _pairs(suite_set: SuiteSet) -> PairSet:
    """Return the pairs of a folder, called as the set; raises DataError when it has none."""
    layout = None
    if type_of(suite_set.folder) == RETRIEVAL_TYPE:
        tars_of(suite_set.folder)
        layout = "webdataset"
    pairs = open_pairs(suite_set.folder, layout=layout)
    return dataclasses.replace(pairs, name=suite_set.key)
