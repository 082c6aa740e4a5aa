"""Retrieval: recall in both directions, and examples of what queries found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dimefm.evaluate.report import bars
from dimefm.evaluate.report.bars import Bar, Group
from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.examples import lines_of, place_of
from dimefm.evaluate.report.parts import Figure, Gallery, Picture, Section, Table
from dimefm.evaluate.report.thumbnails import Captions, Thumbnail, Thumbnails, captions_of
from dimefm.evaluate.report.words import count, cut, joined, keys, percent, plural
from dimefm.evaluate.retrieval import IMAGE_TO_TEXT
from dimefm.evaluate.retrieval_model import RETRIEVED
from dimefm.runs.scores import RETRIEVAL

QUERIES = 4
"""Queries of a direction whose finds are shown at most."""

LONGEST_QUERY = 140
LONGEST_FIND = 90
"""Characters of captions that are shown."""

FINDS = 5
"""Candidates of a query that are shown at most."""

NO_CAPTIONS = Captions("", "test", None)


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
    queries, damaged = _queries(collection)
    galleries = _galleries(queries, thumbnails, most)
    text = []
    if queries and not thumbnails.roots:
        text.append("Pictures of the finds are shown with --root, the folder of the datasets.")
    if damaged:
        text.append(f"{plural(damaged, 'line')} of {RETRIEVED} could not be read.")
    text += thumbnails.remarks()
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


@dataclass(frozen=True)
class Query:
    """One query of a model and what it found, as the file of examples has it."""

    model: Model
    line: dict
    captions: Captions | None

    @property
    def is_image(self) -> bool:
        """Whether the query is an image, and the finds are texts."""
        return self.line["direction"] == IMAGE_TO_TEXT


def _queries(collection: Collection) -> tuple[list[Query], int]:
    """Return the queries to show, and how many lines were unreadable.

    Of a student and its teacher, the student's are shown.
    """
    teachers = list(collection.teacher_of.values())
    queries = []
    damaged = 0
    for model in collection.models:
        if any(model is teacher for teacher in teachers):
            continue
        for source in model.sources:
            captions = captions_of(source.content)
            counts: dict[tuple[str, str], int] = {}
            for line in lines_of(source.folder / RETRIEVED):
                if line is None or not _is_example(line):
                    damaged += 1
                    continue
                kind = (line["dataset"], line["direction"])
                counts[kind] = counts.get(kind, 0) + 1
                if counts[kind] <= QUERIES:
                    queries.append(Query(model, line, captions))
    return queries, damaged


def _is_example(line: dict) -> bool:
    """Say whether a line has a query and candidates."""
    texts = [line.get("dataset"), line.get("direction")]
    candidates = line.get("candidates")
    tables = [line.get("query")]
    if isinstance(candidates, list):
        tables += candidates
    is_whole = all(isinstance(text, str) for text in texts) and len(tables) > 1
    return is_whole and all(isinstance(table, dict) for table in tables)


def _galleries(queries: Sequence[Query], thumbnails: Thumbnails, most: int) -> list[Gallery]:
    """Return a gallery for each query: the query, if it is an image, and the finds."""
    galleries = []
    left = most
    for query in queries:
        pictures = []
        if query.is_image:
            pictures.append(_queried(query, thumbnails, left))
        for place, candidate in enumerate(query.line["candidates"][:FINDS], start=1):
            shown = sum(picture.jpeg is not None for picture in pictures)
            pictures.append(_find(query, candidate, place, thumbnails, left - shown))
        left -= sum(picture.jpeg is not None for picture in pictures)
        galleries.append(Gallery(_title(query), pictures, _about(query)))
    return galleries


def _title(query: Query) -> str:
    entry = query.line["query"]
    if query.is_image:
        return f"Image {entry.get('key')}"
    return f"“{cut(str(entry.get('caption')), LONGEST_QUERY)}”"


def _about(query: Query) -> str:
    """Return whose query it is, and in which place the right candidate is."""
    text = f"{query.model.name}, {query.line['dataset']}, {query.line['direction']}"
    rank = query.line.get("rank")
    if isinstance(rank, int):
        text += f"; the best right candidate has the place {rank:,}"
    return text


def _queried(query: Query, thumbnails: Thumbnails, left: int) -> Picture:
    """Return the image that is the query."""
    entry = query.line["query"]
    thumbnail = _thumbnail(query, entry, thumbnails, left)
    return Picture(
        jpeg=thumbnail.jpeg if thumbnail else None,
        alt=f"query, image {entry.get('key')}",
        title="query",
        is_small=thumbnail is not None and thumbnail.is_small,
    )


def _find(query: Query, candidate: dict, place: int, thumbnails: Thumbnails, left: int) -> Picture:
    """Return a candidate that the query found: a text, or an image."""
    is_right = candidate.get("is_right")
    cosine = candidate.get("cosine")
    words = []
    thumbnail = None
    if query.is_image:
        words.append(cut(str(candidate.get("caption")), LONGEST_FIND))
    else:
        thumbnail = _thumbnail(query, candidate, thumbnails, left)
        if thumbnail is None:
            words.append(str(candidate.get("key")))
    if isinstance(cosine, int | float):
        words.append(f"cosine {cosine:.3f}")
    return Picture(
        jpeg=thumbnail.jpeg if thumbnail else None,
        alt=f"find {place}, image {candidate.get('key')}",
        title=f"{place}. {'right' if is_right else 'wrong'}",
        lines=words,
        is_right=is_right if isinstance(is_right, bool) else None,
        is_small=thumbnail is not None and thumbnail.is_small,
    )


def _thumbnail(query: Query, entry: dict, thumbnails: Thumbnails, left: int) -> Thumbnail | None:
    place = place_of({**entry, "dataset": query.line["dataset"]})
    if place is None or left < 1:
        return None
    return thumbnails.of(place, query.captions or NO_CAPTIONS)
