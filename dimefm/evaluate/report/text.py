"""A report as Markdown and as CSV: its tables, without figures and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from dimefm.evaluate.report.collect import Collection
from dimefm.evaluate.report.parts import Section, Table
from dimefm.evaluate.reports import in_markdown
from dimefm.runtime.printable import one_line
from dimefm.runtime.tables import markdown_table

HEADING = "# Evaluation of "
COLUMNS = (
    "model",
    "task",
    "dataset",
    "metric",
    "value",
    "is_main",
    "chance",
    "samples",
    "unreadable",
    "note",
)


def markdown(sections: Sequence[Section]) -> str:
    """Return the report as a Markdown page."""
    first = sections[0]
    lines = [f"# {in_markdown(first.title)}", ""]
    for section in sections:
        if section is not first:
            lines += [f"## {in_markdown(section.title)}", ""]
        for line in section.text:
            lines += [in_markdown(line), ""]
        for tile in section.tiles:
            words = f"{tile.label}: **{tile.value}** ({tile.detail})"
            lines.append(f"* {in_markdown(words)}")
        if section.tiles:
            lines.append("")
        for table in _tables(section):
            lines += _markdown_table(table)
    return "\n".join(lines).rstrip() + "\n"


def _tables(section: Section) -> Iterator[Table]:
    for figure in section.figures:
        if figure.table is not None:
            yield figure.table
    yield from section.tables


def _markdown_table(table: Table) -> list[str]:
    rows = []
    for cells in [table.head, *table.rows]:
        rows.append([in_markdown(cell) for cell in cells])
    lines = [f"**{in_markdown(table.caption)}**", "", *markdown_table(rows, table.left), ""]
    if table.note:
        lines += [in_markdown(table.note), ""]
    return lines


def csv_table(collection: Collection) -> str:
    """Return all metrics of all results as CSV, a line each; values are 0 to 1."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for model in collection.models:
        for (task, dataset), result in model.results.items():
            for metric, value in result.metrics.items():
                cells = (
                    _cell(model.name),
                    _cell(task),
                    _cell(dataset),
                    _cell(metric),
                    repr(value),
                    int(metric == result.main_metric),
                    "" if result.chance is None else repr(result.chance),
                    result.samples,
                    result.unreadable,
                    _cell(result.note),
                )
                writer.writerow(cells)
    return file.getvalue()


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    safe = one_line(text)
    return f"'{safe}" if safe.startswith(("=", "+", "-", "@")) else safe
