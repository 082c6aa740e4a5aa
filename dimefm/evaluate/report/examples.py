"""Examples that an evaluation left beside its scores, line by line as JSON.

``wrong.jsonl`` has the images whose class was not recognized, ``retrieved.jsonl`` queries and what
they found. Lines that cannot be read are counted; files are read up to a limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.evaluate.predictions import WRONG
from dimefm.evaluate.report.collect import Model, Source
from dimefm.storage.small_files import parse_json

MOST_BYTES = 512 << 20
"""Bytes of a file of examples that are read."""

LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Place:
    """Where an image is: its dataset, the name of its source, its row there and its key."""

    dataset: str
    source: str
    row: int
    key: str


@dataclass(frozen=True)
class Mistake:
    """An image whose most probable class is not its own. The probability is 0 to 1."""

    place: Place
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Mistakes:
    """All mistakes of a model, in the order of the files, and how many lines were unreadable."""

    entries: Sequence[Mistake]
    damaged: int


def lines_of(path: Path) -> Iterator[dict | None]:
    """Yield the object in each line of a file, None for a line that holds none."""
    if not path.is_file():
        return
    read = 0
    with path.open("rb") as file:
        while read < MOST_BYTES:
            line = file.readline(LONGEST_LINE)
            if not line:
                return
            read += len(line)
            try:
                value = parse_json(line.decode("utf-8"))
            except ValueError:
                value = None
            yield value if isinstance(value, dict) else None


def mistakes_of(model: Model) -> Mistakes:
    """Return the mistakes that lie beside the scores of a model, each image once."""
    entries: dict[Place, Mistake] = {}
    damaged = 0
    for source in model.sources:
        for line in lines_of(source.folder / WRONG):
            mistake = None if line is None else _mistake(line)
            if mistake is None:
                damaged += 1
            elif _is_scored(source, mistake.place.dataset):
                entries.setdefault(mistake.place, mistake)
    return Mistakes(list(entries.values()), damaged)


def _is_scored(source: Source, dataset: str) -> bool:
    """Say whether a file of scores has a dataset; other examples are of a former evaluation."""
    return any(result.dataset == dataset for result in source.results)


def place_of(line: dict) -> Place | None:
    """Return the place of an image that a line states, None where a part is missing."""
    texts = [line.get(name) for name in ("dataset", "source", "key")]
    row = line.get("row")
    if not all(isinstance(text, str) for text in texts):
        return None
    if type(row) is not int or row < 0:
        return None
    dataset, source, key = texts
    return Place(str(dataset), str(source), row, str(key))


def _mistake(line: dict) -> Mistake | None:
    place = place_of(line)
    label = line.get("label")
    predicted = line.get("predicted")
    probability = line.get("probability")
    if place is None or not isinstance(label, str) or not isinstance(predicted, str):
        return None
    if not isinstance(probability, int | float) or not 0 <= probability <= 1:
        return None
    return Mistake(place, label, predicted, float(probability))
