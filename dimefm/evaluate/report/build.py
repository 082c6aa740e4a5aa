"""Make a report: read scores, write the page, its Markdown and its CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dimefm.errors import DataError
from dimefm.evaluate.report.collect import Collection, collect
from dimefm.evaluate.report.page import GENERATOR, page
from dimefm.evaluate.report.sections import (
    agreement,
    cost,
    headline,
    mistakes,
    provenance,
    retrieval,
    robustness,
    scores,
    shots,
)
from dimefm.evaluate.report.text import COLUMNS, HEADING, csv_table, markdown
from dimefm.evaluate.report.thumbnails import Thumbnails
from dimefm.storage.files import write_report, write_text

MOST_PICTURES = 48
PAGES = (".html", ".htm")
PAGE = "report.html"
MARKS = {"html": GENERATOR, "md": HEADING, "csv": ",".join(COLUMNS)}
"""What a file of a former report has near its beginning, by its kind."""

LOOKED_AT = 4096
"""Characters of a file in which its mark is looked for."""


def files_of(out: Path) -> dict[str, Path]:
    """Return the files of a report by their kind: "html", "md" and "csv".

    ``out`` is the page, or a folder for it. Raises DataError for another kind of file, and where a
    file of something else is in the place of one of the three.
    """
    if out.is_dir() or not out.suffix:
        out = out / PAGE
    if out.suffix.lower() not in PAGES:
        raise DataError(
            f"--out {out}: the report is an HTML page. Fix: give a name that ends in .html, or a"
            " folder"
        )
    files = {"html": out, "md": out.with_suffix(".md"), "csv": out.with_suffix(".csv")}
    for kind, path in files.items():
        if path.exists() and not _is_ours(path, MARKS[kind]):
            raise DataError(
                f"{path}: another file has this name, and would be replaced; nothing was written."
                " Fix: give another --out"
            )
    return files


def _is_ours(path: Path, mark: str) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return mark in file.read(LOOKED_AT)
    except OSError:
        return False


def build(
    paths: Sequence[Path],
    out: Path,
    teacher: str | None = None,
    roots: Sequence[Path] = (),
    pictures: int = MOST_PICTURES,
) -> dict:
    """Write a report of the scores in ``paths`` to ``out``; return what it holds, for JSON.

    ``roots`` are folders of datasets, from which at most ``pictures`` examples of each kind are
    shown; without them examples are text. Equal scores give equal files. Raises DataError as
    :func:`~dimefm.evaluate.report.collect.collect` and :func:`files_of` do.
    """
    files = files_of(out)
    collection = collect(paths, teacher)
    thumbnails = Thumbnails(roots)
    made = (
        headline.section(collection),
        scores.section(collection),
        cost.section(collection),
        shots.section(collection),
        robustness.section(collection),
        retrieval.section(collection, thumbnails, pictures),
        agreement.section(collection),
        mistakes.section(collection, thumbnails, pictures),
        provenance.section(collection),
    )
    sections = [section for section in made if section is not None]
    table = csv_table(collection)
    text = markdown(sections)
    downloads = {
        "scores.json": ("application/json", _as_json(collection)),
        files["csv"].name: ("text/csv", table),
        files["md"].name: ("text/markdown", text),
    }
    files["html"].parent.mkdir(parents=True, exist_ok=True)
    write_text(files["html"], page(sections, downloads))
    write_report(files["md"], text)
    write_text(files["csv"], table)
    return {
        "page": str(files["html"]),
        "markdown": str(files["md"]),
        "csv": str(files["csv"]),
        "models": [model.name for model in collection.models],
        "teachers": {
            collection.models[number].name: model.name
            for number, model in collection.teacher_of.items()
        },
        "scores": [source.path.as_posix() for source in collection.sources],
        "notes": collection.notes,
    }


def _as_json(collection: Collection) -> str:
    """Return what all files of scores hold, by their paths."""
    contents = {source.path.as_posix(): source.content for source in collection.sources}
    return json.dumps(contents, indent=1, ensure_ascii=True)
