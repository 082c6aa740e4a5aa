"""What evaluations on folders of datasets share: settings, the output folder, and refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.datasets.layouts import Dataset, find, without_card
from dimefm.evaluate.metrics import METRICS
from dimefm.extract.extract import Settings
from dimefm.runs.scores import SCORE_MARKS, SCORES, Failure, Scores, ZeroShotScores
from dimefm.runtime import console
from dimefm.runtime.printable import shown
from dimefm.runtime.text import first_few
from dimefm.storage.locks import Claim, claim
from dimefm.storage.out_folder import refuse_foreign

REASONS = 360
"""Characters of the reasons of all failures in one message."""

SHOWN = 12
"""Datasets that a message lists at most."""

FEW = 4  # folders without a card, in a message

LOCK = ".eval.lock"
"""File in the output folder that an evaluation holds while it runs."""


def refuse_unscored(
    scores: ZeroShotScores | Scores, root: Path, names: Sequence[str] | None
) -> None:
    """Raise DataError when a dataset failed, or one that ``names`` asked for is not in ``root``."""
    failed = list(dict.fromkeys(failure.dataset for failure in scores.failed))
    absent = list(scores.missing) if names is not None else []
    if not failed and not absent:
        return
    count = len(failed) + len(absent)
    scored = {result.dataset for result in scores.results}
    asked = len(scored.union(failed)) + len(absent)
    lines = []
    if failed:
        lines.append(f"{first_few(failed, SHOWN)}; the reasons stand above and in {SCORES}")
    if absent:
        lines.append(f"{first_few(absent, SHOWN)} not found in {root}")
    raise DataError(
        f"{count} of {asked} datasets could not be scored: {'; '.join(lines)}. Fix: repair or fetch"
        " them, or remove them from --datasets"
    )


def settings_of(batch_size: int, workers: int, decoder: str) -> Settings:
    """Return the settings with which an evaluation encodes images and prompts."""
    return Settings(dtype="float32", batch_size=batch_size, workers=workers, decoder=decoder)


def check_metric(metric: str | None) -> None:
    """Raise DataError for a metric that does not exist."""
    if metric is not None and metric not in METRICS:
        raise DataError(f"unknown metric '{metric}': {did_you_mean(metric, METRICS)}")


def found_or_failed(
    root: Path, names: Sequence[str] | None, layout: str | None
) -> tuple[list[Dataset], Sequence[str], list[Failure]]:
    """Return the datasets below ``root``, the names without a folder, and what cannot be read.

    ``names`` are benchmarks or folders; without them every folder that a card claims is taken.
    Raises DataError when there is none of them.
    """
    failed: list[Failure] = []
    datasets, missing = find(
        root,
        names,
        layout=layout,
        every_card=True,
        on_failure=lambda name, error: failed.append(Failure(name, str(error))),
    )
    if not datasets and not failed:
        raise none_found(root)
    return datasets, missing, failed


def none_found(root: str | Path) -> DataError:
    """Return the error that there is no dataset in ``root``."""
    own = without_card(root)
    if own:
        return DataError(
            f"{root}: none of the datasets asked for is here; its folders have no card"
            f" ({first_few(own, FEW)}). Fix: name those to score, e.g. --datasets {own[0]}; where"
            " they are the classes of one dataset, dimefm eval folder scores it"
        )
    return DataError(
        f"{root}: none of the datasets asked for is here; expected one folder per dataset. Fix:"
        " give the folder that holds them, or name the folders to score with --datasets"
    )


def note_own_folders(root: str | Path) -> None:
    """Say which folders in ``root`` are not scored because they have no card."""
    own = without_card(root)
    if own:
        console.note(
            f"note: not scored, without a card: {first_few(own, FEW)} (--datasets scores a folder"
            " that it names)"
        )


def none_scored(failed: Sequence[Failure], root: Path, out: Path) -> DataError:
    """Return the error that no dataset could be scored, with the beginning of each reason.

    Several reasons in full are printed as notes.
    """
    if len(failed) == 1:
        [failure] = failed
        return DataError(
            f"the one dataset here could not be scored: {failure.dataset}: {failure.reason}"
        )
    longest = REASONS // len(failed)
    reasons = []
    for failure in failed:
        console.note(f"{failure.dataset}: {failure.reason}")
        reason = failure.reason.replace(f"{root}/", "").replace(f"{out}/", "")
        reasons.append(f"{failure.dataset}: {shown(reason, longest)}")
    return DataError(
        f"none of the {len(failed)} datasets here could be scored: {'; '.join(reasons)}. Fix: see"
        " the notes above"
    )


@contextlib.contextmanager
def feature_store(out: Path | None) -> Iterator[Path]:
    """Yield the folder for features: in ``out``, or a temporary one that is removed at the end."""
    if out is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    refuse_foreign(out, "scores", SCORE_MARKS)
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = _claim(out)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}). Fix: choose another --out"
        ) from error
    with held:
        yield out / "features"


def _claim(out: Path) -> Claim:
    """Claim an output folder; wait for another evaluation that writes to it."""
    held = claim(out / LOCK)
    if held is None:
        console.note(f"note: waiting for another evaluation that writes to {out}")
        held = claim(out / LOCK, wait=True)
    assert held is not None
    return held


def with_metric(dataset: Dataset, metric: str | None) -> Dataset:
    """Return the dataset with another metric; raise DataError for one that does not fit it."""
    benchmark = dataset.benchmark
    if metric is None or metric == benchmark.metric:
        return dataset
    if benchmark.multilabel != (metric == "map_11_point"):
        labels = "several labels" if benchmark.multilabel else "one label"
        raise DataError(
            f"{dataset.folder}: its images have {labels} each, so {metric} is no metric for them."
            f" Fix: leave --metric out, or score it by {benchmark.metric}"
        )
    notes = [dataset.note] if dataset.note else []
    if dataset.card is not None:
        notes.append(f"--metric {metric} in place of the card's {benchmark.metric}")
    benchmark = dataclasses.replace(benchmark, metric=metric)
    return dataclasses.replace(dataset, benchmark=benchmark, note="; ".join(notes))
