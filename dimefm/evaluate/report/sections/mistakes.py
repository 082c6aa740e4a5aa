"""What models take for what: the most frequent confusions, and pictures of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.examples import Mistake, Mistakes, mistakes_of
from dimefm.evaluate.report.parts import Gallery, Picture, Section, Table
from dimefm.evaluate.report.thumbnails import Thumbnails
from dimefm.evaluate.report.words import percent, plural

PAIRS = 5
"""Confusions of a dataset that the table has at most."""

EACH = 6
"""Pictures of a gallery at most."""


def section(collection: Collection, thumbnails: Thumbnails, most: int) -> Section | None:
    """Return the confusions of each model, with at most ``most`` pictures."""
    mistakes = {}
    for model in collection.models:
        found = mistakes_of(model)
        if found.entries or found.damaged:
            mistakes[model.number] = found
    if not mistakes:
        return None
    rows = []
    for model in collection.models:
        if model.number in mistakes:
            rows += _confusions(model, mistakes[model.number].entries)
    table = Table(
        caption="Most frequent confusions",
        head=("model", "dataset", "class", "taken for", "images", "of the mistakes, %"),
        rows=rows,
        left=(0, 1, 2, 3),
    )
    galleries = _galleries(collection, mistakes, thumbnails, most)  # before the remarks on them
    return Section(
        name="mistakes",
        title="Mistakes",
        text=_remarks(collection, mistakes, thumbnails),
        galleries=galleries,
        tables=[table],
    )


def _by_dataset(entries: Sequence[Mistake]) -> dict[str, list[Mistake]]:
    sorted_out: dict[str, list[Mistake]] = {}
    for mistake in entries:
        sorted_out.setdefault(mistake.place.dataset, []).append(mistake)
    return sorted_out


def _frequent(mistakes: Sequence[Mistake]) -> list[tuple[tuple[str, str], int]]:
    """Return (class, taken for) with their numbers of images, the most frequent first."""
    counts = Counter((mistake.label, mistake.predicted) for mistake in mistakes)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _confusions(model: Model, entries: Sequence[Mistake]) -> list[list[str]]:
    rows = []
    for dataset, mistakes in _by_dataset(entries).items():
        for (label, predicted), count in _frequent(mistakes)[:PAIRS]:
            share = percent(count / len(mistakes), 1)
            rows.append([model.name, dataset, label, predicted, f"{count:,}", share])
    return rows


def _galleries(
    collection: Collection, mistakes: dict[int, Mistakes], thumbnails: Thumbnails, most: int
) -> list[Gallery]:
    """Return pictures of the mistakes, spread over models and datasets."""
    if not thumbnails.roots or most < 1:
        return []
    kinds: list[tuple[str, Sequence[Mistake]]] = []
    teachers = list(collection.teacher_of.values())
    for model in collection.models:
        if model.number not in mistakes or any(model is teacher for teacher in teachers):
            continue  # the pictures are those of students, where their teacher is right
        teacher = collection.teacher_of.get(model.number)
        known = None
        if teacher is not None:
            known = mistakes.get(teacher.number)
        for dataset, wrong in _by_dataset(mistakes[model.number].entries).items():
            title = f"{model.name}, {dataset}"
            own = _without(wrong, known)
            if known is not None and teacher is not None:
                state = "right" if own else "wrong, too"
                title += f": wrong where {teacher.name} is {state}"
            kinds.append((title, own or wrong))
    galleries = []
    left = most
    for place, (title, entries) in enumerate(kinds):
        fair = max(left // (len(kinds) - place), 1)
        pictures = _pictures(entries, min(fair, EACH, left), thumbnails)
        left -= len(pictures)
        if pictures:
            galleries.append(Gallery(title, pictures))
    return galleries


def _without(entries: Sequence[Mistake], known: Mistakes | None) -> list[Mistake]:
    """Return the mistakes that are not among the known ones of another model."""
    if known is None:
        return list(entries)
    theirs = {mistake.place for mistake in known.entries}
    return [mistake for mistake in entries if mistake.place not in theirs]


def _pictures(entries: Sequence[Mistake], most: int, thumbnails: Thumbnails) -> list[Picture]:
    """Return pictures of mistakes: of each frequent confusion the most confident, then others.

    After ``most`` images that cannot be read, no further ones are tried.
    """
    frequency = dict(_frequent(entries))
    seen: Counter = Counter()
    ranked: list[tuple[int, int, int, Mistake]] = []
    for mistake in sorted(entries, key=lambda one: (-one.probability, one.place.row)):
        pair = (mistake.label, mistake.predicted)
        ranked.append((seen[pair], -frequency[pair], len(ranked), mistake))
        seen[pair] += 1
    ranked.sort(key=lambda item: item[:3])
    pictures: list[Picture] = []
    for _, _, _, mistake in ranked[: 2 * most]:
        picture = _picture(mistake, thumbnails)
        if picture is not None:
            pictures.append(picture)
        if len(pictures) == most:
            break
    return pictures


def _picture(mistake: Mistake, thumbnails: Thumbnails) -> Picture | None:
    thumbnail = thumbnails.of(mistake.place)
    if thumbnail is None:
        return None
    return Picture(
        jpeg=thumbnail.jpeg,
        alt=f"{mistake.label}, image {mistake.place.key}",
        title=mistake.predicted,
        lines=[f"is {mistake.label}", f"{percent(mistake.probability, 0)} % sure"],
        is_right=False,
        is_small=thumbnail.is_small,
    )


def _remarks(
    collection: Collection, mistakes: dict[int, Mistakes], thumbnails: Thumbnails
) -> list[str]:
    """Return what there is to know of the examples."""
    parts = []
    damaged = 0
    for model in collection.models:
        if model.number in mistakes:
            entries = mistakes[model.number].entries
            parts.append(f"{model.name} {len(entries):,}")
            damaged += mistakes[model.number].damaged
    lines = [f"Images whose most probable class is not their own: {', '.join(parts)}."]
    if not thumbnails.roots:
        lines.append("Pictures of them are shown with --root, the folder of the datasets.")
    if damaged:
        lines.append(f"{plural(damaged, 'line')} of wrong.jsonl could not be read.")
    return [*lines, *thumbnails.remarks()]
