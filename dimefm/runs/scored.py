"""Find the scores of runs wherever they were written, and those of models that are no runs.

Scores below a run folder are the run's. Other scores say whose they are by the digest of the
weights: those next to the run folders, and those in folders that the user names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dimefm.errors import DataError
from dimefm.runs.folder import FILE
from dimefm.runs.scores import (
    DEPTH,
    RETRIEVAL,
    RETRIEVAL_FIRST,
    SCORES,
    ZERO_SHOT,
    Result,
    files_below,
    read_content,
    read_results,
)
from dimefm.runs.weights import weights_of

RECIPE = "recipe.toml"
RETRIEVALS = (RETRIEVAL, RETRIEVAL_FIRST)
ARROWS = {"text to image": "T→I", "image to text": "I→T"}
LOWER_IS_BETTER = ("error", "loss", "forgot", "rank", "duplicate")
"""Words in the names of metrics of which less is better."""


@dataclass(frozen=True)
class Key:
    """What a number is of: ``name`` is of the dataset (or average), ``task`` and ``metric`` are
    those of the result.
    """

    task: str
    name: str
    metric: str

    @property
    def label(self) -> str:
        """Return a short head: zero-shot is not named, of retrieval the direction is."""
        if self.task in RETRIEVALS:
            direction, _, recall = self.metric.partition(" R@")
            short = f"{ARROWS.get(direction, direction)} R@{recall}" if recall else ""
            protocol = self.task.removeprefix(RETRIEVAL).removeprefix(", ")
            parts = (self.name, short, f"({protocol})" if protocol else "")
            return " ".join(part for part in parts if part)
        return self.name if self.task == ZERO_SHOT else f"{self.name} ({self.task})"

    @property
    def lower_is_better(self) -> bool:
        """Tell whether a smaller value is the better one."""
        return any(word in self.metric.lower() for word in LOWER_IS_BETTER)


@dataclass
class Scored:
    """Scores of one model: ``values``, 0 to 1. ``elsewhere`` are the keys of those that were found
    outside its run folder, ``repeated`` those with two different values: the first is kept.
    """

    name: str
    weights: str | None = None
    values: dict[Key, float] = field(default_factory=dict)
    elsewhere: dict[Key, None] = field(default_factory=dict)
    repeated: list[Key] = field(default_factory=list)

    def add(self, path: Path, is_elsewhere: bool = False) -> None:
        """Add the scores of a file."""
        for key, value in values_of(path):
            if is_elsewhere:
                self.elsewhere[key] = None
            kept = self.values.setdefault(key, value)
            if kept != value and key not in self.repeated:
                self.repeated.append(key)


def values_of(path: Path) -> Iterator[tuple[Key, float]]:
    """Yield (key, value 0 to 1) of the scores in a file: the main metric of each result, all of
    retrieval, and averages. Raises DataError when it cannot be read.
    """
    results = read_results(path)
    for result in results:
        metrics = {result.main_metric: result.value}
        if result.task in RETRIEVALS:
            metrics = dict(result.metrics)
        for metric, value in metrics.items():
            yield Key(result.task, result.dataset, metric), value
    yield from _averages(path, results)


def _averages(path: Path, results: Sequence[Result]) -> Iterator[tuple[Key, float]]:
    """Yield the averages that a file states, where they are of several results."""
    content = read_content(path)
    tasks = {result.task for result in results}
    task = tasks.pop() if len(tasks) == 1 else "average"
    stated = content.get("summary")
    averages = dict(stated) if isinstance(stated, dict) else {}
    if content.get("mean") is not None and len(results) > 1:
        averages["mean"] = content["mean"]
    if len(results) == 1 and task in RETRIEVALS:
        averages = {f"{results[0].dataset} {name}": value for name, value in averages.items()}
    for name, value in averages.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 <= value <= 1:
            yield Key(task, str(name), str(name)), float(value)


def find_scores(
    folders: Sequence[Path], names: Sequence[str], given: Sequence[Path] = ()
) -> tuple[list[Scored], list[Scored]]:
    """Return the scores of the runs in ``folders``, in order, and of the other models in ``given``.

    ``given`` are files of scores, or folders above them. ``names`` are those of the runs. Raises
    DataError for one of ``given`` without scores, and for a file that cannot be read.
    """
    of_runs = [Scored(name) for name in names]
    taken: set[Path] = set()
    for folder, scored in zip(folders, of_runs, strict=True):
        for path in files_below(folder):
            if path.resolve() not in taken:
                taken.add(path.resolve())
                scored.add(path)
    asked = [path for place in given for path in _files_at(place)]
    beside = [path for folder in folders for path in _beside(folder)]
    others: dict[str, Scored] = {}
    if not asked and not beside:
        return of_runs, []
    by_weights: dict[str, Scored] = {}
    for folder, scored in zip(folders, of_runs, strict=True):
        scored.weights = weights_of(folder)
        if scored.weights is not None:
            by_weights.setdefault(scored.weights, scored)
    for path in asked:
        if path.resolve() in taken:
            continue
        taken.add(path.resolve())
        content = read_content(path)
        weights = content.get("weights_sha256")
        owner = by_weights.get(str(weights))
        if owner is None:
            spec = str(content.get("model") or path.parent.name)
            owner = others.setdefault(str(weights or spec), Scored(spec, weights))
        owner.add(path, is_elsewhere=True)
    for path in beside:
        owner = by_weights.get(_weights_in(path))
        if path.resolve() not in taken and owner is not None:
            taken.add(path.resolve())
            owner.add(path, is_elsewhere=True)
    _shorten(list(others.values()))
    return of_runs, list(others.values())


def _shorten(others: Sequence[Scored]) -> None:
    """Call models that are paths by their last part, where that tells them apart."""
    short = []
    for one in others:
        is_tag = one.name.count("/") == 1 and not one.name.startswith(("/", "."))
        short.append(one.name if is_tag else Path(one.name).name or one.name)
    for one, name in zip(others, short, strict=True):
        if short.count(name) == 1:
            one.name = name


def _weights_in(path: Path) -> str:
    """Return the digest of the weights that a file of scores states, "" where it states none.

    Next to runs there may be files of this name that other programs wrote.
    """
    try:
        return str(read_content(path).get("weights_sha256"))
    except DataError:
        return ""


def _files_at(place: Path) -> list[Path]:
    found = [place] if place.is_file() else files_below(place)
    if not found:
        raise DataError(
            f"--scores {place}: no {SCORES} there or up to {DEPTH} folders below. Fix: name a"
            " folder that dimefm eval wrote"
        )
    return found


def _beside(folder: Path) -> list[Path]:
    """Return the scores in the folders next to a run folder that are no run folders themselves."""
    found = []
    for path in sorted(folder.resolve().parent.glob("*")):
        is_run = (path / FILE).is_file() or (path / RECIPE).is_file()
        if path.is_dir() and not is_run:
            found += files_below(path, 1)
    return found
