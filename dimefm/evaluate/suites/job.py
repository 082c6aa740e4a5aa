"""Score a model on a suite: one dataset after the other, each of which may fail by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dimefm.errors import CacheError, DataError
from dimefm.evaluate import profiling, score_tables
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.preparing import feature_store, none_scored
from dimefm.evaluate.suites import datacomp
from dimefm.evaluate.suites.classification import score_labeled
from dimefm.evaluate.suites.folders import (
    RETRIEVAL,
    SuiteSet,
    find_sets,
    folders_by_name,
    only_folder,
    plain_name,
    type_of,
)
from dimefm.evaluate.suites.lines import write_lines
from dimefm.evaluate.suites.retrieval import MEAN_AT_1, score_captions
from dimefm.evaluate.suites.winogavil import score_winogavil
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import Failure, Result, Scores, write_scores
from dimefm.runtime.text import first_few

TITLES = {"wds": "Scores on clip-benchmark's folders", "datacomp": "Scores on DataComp's tasks"}
PROTOCOL = (
    "clip-benchmark zero-shot: prompts normalized, averaged, normalized; class names and templates"
    " next to the data"
)
WINOGAVIL = "misc/winogavil"
SHOWN = 12


@dataclass
class Suite:
    """The sets of a suite that are here, those that are not, and those that failed."""

    name: str
    root: Path
    sets: list[SuiteSet]
    missing: list[str]
    failed: list[Failure] = field(default_factory=list)
    is_whole: bool = True


def open_suite(root: Path, name: str = "wds", names: Sequence[str] | None = None) -> Suite:
    """Return the sets of a suite below ``root``, all of them or those of ``names``.

    Raises DataError when none is found, or a name is not known.
    """
    if name == "datacomp":
        return _datacomp(root, names)
    sets, missing = find_sets(root, names)
    suite = Suite(name, root, sets, missing, is_whole=names is None)
    return _refuse_empty(suite)


def _datacomp(root: Path, names: Sequence[str] | None) -> Suite:
    """Return the tasks of DataComp whose folders are below ``root``."""
    folders = folders_by_name(root)
    suite = Suite("datacomp", root, [], [], is_whole=names is None)
    wanted = datacomp.counted_tasks()
    if names is not None:
        wanted = tuple(_task(name) for name in dict.fromkeys(names))
    for task in wanted:
        paths: list[Path] = []
        for folder_name in (task.key, *task.folders):
            paths += folders.get(plain_name(folder_name), [])
        if not paths:
            suite.missing.append(task.key)
            continue
        try:
            suite.sets.append(SuiteSet(task.key, only_folder(task.key, paths), task))
        except DataError as error:
            suite.failed.append(Failure(task.key, str(error)))
    return _refuse_empty(suite)


def _task(name: str) -> datacomp.Task:
    """Return the task of a key, a name or a folder; raise DataError when none counts."""
    plain = plain_name(name)
    for task in datacomp.counted_tasks():
        known = (task.key, task.name, *task.folders)
        if plain in {plain_name(one) for one in known}:
            return task
    raise DataError(
        f"'{name}' is no task in DataComp's average. Fix: name one of"
        f" {first_few([task.key for task in datacomp.counted_tasks()], SHOWN)}"
    )


def _refuse_empty(suite: Suite) -> Suite:
    if suite.sets or suite.failed:
        return suite
    raise DataError(
        f"{suite.root}: none of the datasets asked for is here ({first_few(suite.missing, 4)})."
        " Fix: give the folder that holds folders like wds_cifar10 or wds_vtab-cifar10_test"
    )


def score_suite(encoder: Encoder, suite: Suite, out: Path, settings: Settings) -> Scores:
    """Score an encoder on the sets of a suite, and keep the scores in ``out``.

    ``scores.json``, ``report.md``, ``clip_benchmark.jsonl``, ``results.csv`` and, for DataComp,
    ``datacomp.jsonl`` are written after each set; embeddings are kept in ``out/features``. A set
    that cannot be scored is listed as failed.

    Raises DataError when no set can be scored, or ``out`` cannot be written.
    """
    encoder.require_text()
    started = time.perf_counter()
    results: list[Result] = []
    failed = list(suite.failed)
    scores = None
    costs = profiling.facts(encoder)  # measured once
    with feature_store(out) as store:
        for place, suite_set in enumerate(suite.sets, start=1):
            try:
                with dataset_guard(suite_set.folder):
                    results.append(_score(encoder, suite_set, store, settings))
            except (DataError, CacheError) as error:
                failed.append(Failure(suite_set.name, str(error)))
            if not results:
                continue
            scores = Scores(
                model=encoder.card.name,
                weights_sha256=encoder.card.weights_sha256,
                protocol=PROTOCOL,
                results=tuple(results),
                encoder={**costs, **profiling.facts(encoder, measure=False)},
                summary=_summary(suite, results),
                missing=tuple(suite.missing),
                failed=tuple(failed),
                pending=tuple(later.name for later in suite.sets[place:]),
                seconds=round(time.perf_counter() - started, 3),
                settings={"suite": suite.name, "split": "test"},
            )
            write_scores(out, scores, score_tables.markdown(scores, TITLES[suite.name]))
            write_lines(out, scores)
    if scores is None:
        raise none_scored(failed, suite.root, out)
    return scores


def _score(encoder: Encoder, suite_set: SuiteSet, store: Path, settings: Settings) -> Result:
    """Return the result of one set."""
    task = suite_set.task
    if task is not None and task.key == WINOGAVIL:
        return score_winogavil(encoder, suite_set, store, settings)
    is_of_captions = task is not None and task.metric == MEAN_AT_1
    if is_of_captions or type_of(suite_set.folder) == RETRIEVAL:
        return score_captions(encoder, suite_set, store, settings)
    return score_labeled(encoder, suite_set, store, settings)


def _summary(suite: Suite, results: Sequence[Result]) -> dict[str, float]:
    """Return the average of the main metrics under the name that it may have."""
    if suite.name == "datacomp":
        name, value = datacomp.average(results)
        return {name: value}
    values = [result.value for result in results]
    return {f"mean of the main metrics of {len(values)} datasets": sum(values) / len(values)}
