"""Retrieval: recall in both directions, and examples of what queries found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dimefm.evaluate.report import bars
from dimefm.evaluate.report.bars import Bar, Group
from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.examples import RETRIEVED, lines_of, place_of
from dimefm.evaluate.report.parts import Figure, Gallery, Picture, Section, Table
from dimefm.evaluate.report.thumbnails import Thumbnails
from dimefm.evaluate.report.words import count, joined, keys, percent, plural
from dimefm.runs.scores import RETRIEVAL

QUERIES = 6
"""Queries of a direction whose finds are shown at most."""

FINDS = 5
"""Candidates of a query that are shown at most."""

IMAGE_TO_TEXT = "image to text"


def is_retrieval(task: str) -> bool:
    """Say whether a task is retrieval, of any protocol."""
    return task == RETRIEVAL or task.startswith(f"{RETRIEVAL},")


def section(collection: Collection, thumbnails: Thumbnails, most: int) -> Section | None:
    """Return recalls as bars, and examples with at most ``most`` pictures."""
    tasks = [task for task in collection.tasks() if is_retrieval(task)]
    if not tasks:
        return None
    figures = []
    for number, task in enumerate(tasks):
        for row, dataset in enumerate(collection.datasets(task)):
            figures.append(_figure(collection, task, dataset, f"retrieval-{number}-{row}"))
    galleries, damaged = _galleries(collection, thumbnails, most)
    text = []
    if damaged:
        text.append(f"{plural(damaged, 'line')} of {RETRIEVED} could not be read.")
    return Section(
        name="retrieval", title="Retrieval", text=text, figures=figures, galleries=galleries
    )


def _figure(collection: Collection, task: str, dataset: str, name: str) -> Figure:
    """Return the recalls of one dataset: a group of bars for each direction and K."""
    models = [model for model in collection.models if (task, dataset) in model.results]
    metrics: dict[str, None] = {}
    for model in models:
        metrics.update(dict.fromkeys(model.results[task, dataset].metrics))
    groups = []
    rows = []
    for metric in metrics:
        made = []
        cells = [metric]
        for model in models:
            value = model.results[task, dataset].metrics.get(metric)
            made.append(Bar(model.number, model.name, None if value is None else 100 * value))
            cells.append(percent(value))
        groups.append(Group(metric, made))
        rows.append(cells)
    title = f"{task[:1].upper()}{task[1:]}: {dataset}"
    parts = []
    for cells in rows[:6]:
        parts.append(f"{cells[0]} {' and '.join(cells[1:])}")
    names = joined([model.name for model in models])
    description = f"Bars of recall in percent of {names}: {'; '.join(parts)}."
    drawn = bars.drawings(groups, name, title, description)
    head = ("recall", *(model.name for model in models))
    return Figure(
        name=name,
        title=title,
        description=description,
        wide=drawn["wide"],
        narrow=drawn["narrow"],
        keys=keys(models),
        table=Table(f"{title}, percent", head, rows),
        note=_note(models, task, dataset),
    )


def _note(models: Sequence[Model], task: str, dataset: str) -> str:
    """Return the numbers of queries and candidates, and what there is to know of the data."""
    parts: dict[str, None] = {}
    for model in models:
        result = model.results[task, dataset]
        directions = result.details.get("directions")
        for direction, sizes in directions.items() if isinstance(directions, dict) else ():
            if isinstance(sizes, dict):
                queries = _whole(sizes.get("queries"))
                candidates = _whole(sizes.get("candidates"))
                parts[f"{direction}: {queries} queries, {candidates} candidates"] = None
        if result.note:
            parts[result.note] = None
    return f"{'; '.join(parts)}." if parts else ""


def _whole(value: Any) -> str:
    return count(value) if isinstance(value, int) else "?"


def _galleries(
    collection: Collection, thumbnails: Thumbnails, most: int
) -> tuple[list[Gallery], int]:
    """Return the finds of some queries of each model, and how many lines were unreadable."""
    galleries = []
    damaged = 0
    left = most
    for model in collection.models:
        chosen: dict[tuple[str, str], list[dict]] = {}
        for source in model.sources:
            for line in lines_of(source.folder / RETRIEVED):
                if line is None or not _is_example(line):
                    damaged += 1
                    continue
                kind = (line["dataset"], line["direction"])
                if len(chosen.setdefault(kind, [])) < QUERIES:
                    chosen[kind].append(line)
        for (dataset, direction), lines in chosen.items():
            for line in lines:
                gallery = _gallery(model, dataset, direction, line, thumbnails, left)
                left -= sum(picture.jpeg is not None for picture in gallery.pictures)
                galleries.append(gallery)
    return galleries, damaged


def _is_example(line: dict) -> bool:
    texts = [line.get("dataset"), line.get("direction")]
    tables = [line.get("query"), *_tables(line.get("candidates"))]
    is_whole = all(isinstance(text, str) for text in texts) and len(tables) > 1
    return is_whole and all(isinstance(table, dict) for table in tables)


def _tables(value: Any) -> list:
    return value if isinstance(value, list) else []


def _gallery(
    model: Model, dataset: str, direction: str, line: dict, thumbnails: Thumbnails, left: int
) -> Gallery:
    """Return a query, if it is an image, and the candidates that it found, the best first."""
    query = line["query"]
    pictures = []
    title = f"{model.name}, {dataset}, {direction}"
    if direction == IMAGE_TO_TEXT:
        jpeg, is_small = _image(dataset, query, thumbnails, left)
        pictures.append(Picture(jpeg, f"query {query.get('key')}", "query", is_small=is_small))
    else:
        title = f"{title}: “{query.get('caption')}”"
    for place, candidate in enumerate(line["candidates"][:FINDS], start=1):
        is_right = candidate.get("is_right")
        cosine = candidate.get("cosine")
        words = [f"cosine {cosine:.3f}"] if isinstance(cosine, int | float) else []
        jpeg = None
        is_small = False
        if direction == IMAGE_TO_TEXT:
            heading = f"{place}. {candidate.get('caption')}"
        else:
            jpeg, is_small = _image(dataset, candidate, thumbnails, left - place + 1)
            heading = f"{place}. {'right' if is_right else 'wrong'}"
            words.append(str(candidate.get("key")))
        known = is_right if isinstance(is_right, bool) else None
        alt = f"find {place}: {candidate.get('key')}"
        pictures.append(Picture(jpeg, alt, heading, words, known, is_small))
    return Gallery(title, pictures)


def _image(
    dataset: str, entry: dict, thumbnails: Thumbnails, left: int
) -> tuple[bytes | None, bool]:
    place = place_of({**entry, "dataset": dataset})
    if place is None or left < 1:
        return None, False
    thumbnail = thumbnails.of(place)
    return (None, False) if thumbnail is None else (thumbnail.jpeg, thumbnail.is_small)
