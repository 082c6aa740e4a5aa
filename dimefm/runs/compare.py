"""Runs side by side: tables of what their recipes differ in and of what they score.

Everything is read from the run folders as training and evaluation leave them, and from scores that
were written elsewhere; a run that is not finished is read as far as it has come. Runs that differ
only in their seed are one column: mean ± deviation.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.errors import DataError
from dimefm.runs import paper, seeds
from dimefm.runs.curves import COLOURS, draw
from dimefm.runs.run_files import Run, evaluated, read_run, read_runs, runs_below
from dimefm.runs.scored import RETRIEVALS, Key, Scored, find_scores
from dimefm.runs.scores import RETRIEVAL, ZERO_SHOT, ZERO_SHOT_BY_TOKENS, files_below, read_results
from dimefm.runs.seeds import NONE, Column
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.storage.files import write_report, write_text

__all__ = ["COLOURS", "Comparison", "differences", "read_run", "read_runs", "runs_below", "scores"]

PLOT, TABLE, REPORT = "compare.png", "compare.csv", "compare.md"
LATEX = "compare.tex"
WIDEST = 40  # characters of a setting in a terminal
WIDTH = 80
"""Columns of a terminal; a wider table is cut into several, between its columns."""

GAP = 2  # blanks between columns


@dataclass(frozen=True)
class Comparison:
    """Runs, and what was scored of them and of other models.

    ``groups`` has the numbers of the runs of each column: several seeds of one recipe are one.
    ``scored`` are the scores of each run, ``others`` those of models that are no runs.
    """

    runs: Sequence[Run]
    groups: Sequence[Sequence[int]]
    scored: Sequence[Scored]
    others: Sequence[Scored] = ()

    @staticmethod
    def of(compared: Sequence[Run], given: Sequence[Path] = ()) -> Comparison:
        """Return the comparison of runs, with the scores in ``given`` files and folders.

        Raises DataError for scores that cannot be read, or of which there are none.
        """
        folders = [run.folder for run in compared]
        names = [run.name for run in compared]
        scored, others = find_scores(folders, names, given)
        groups = seeds.groups([run.settings for run in compared])
        return Comparison(compared, groups, scored, others)

    @property
    def names(self) -> list[str]:
        """The names of all columns: those of runs, then those of other models."""
        names = []
        for numbers in self.groups:
            names.append(seeds.common_name([self.runs[number].name for number in numbers]))
        return names + [other.name for other in self.others]

    def columns(self) -> list[Column]:
        """Return the scores of each column, for a paper's table."""
        names = self.names
        columns = []
        for name, numbers in zip(names, self.groups, strict=False):
            columns.append(seeds.column(name, [self.scored[number] for number in numbers]))
        for other in self.others:
            columns.append(seeds.column(other.name, [other]))
        return [one for one in columns if one.cells]

    def figures(self) -> list[tuple[str, ...]]:
        """Return a row (figure, value in each column) for each figure that some column has."""
        rows = []
        for name, *cells in scores(self.runs):
            known = [None if cell == NONE else cell for cell in cells]
            row = [self._cell([known[number] for number in numbers]) for numbers in self.groups]
            rows.append((name, *row, *([NONE] * len(self.others))))
        return rows + self._from_elsewhere()

    def _cell(self, cells: Sequence[str | None]) -> str:
        return NONE if all(cell is None for cell in cells) else seeds.merged(cells)

    def _from_elsewhere(self) -> list[tuple[str, ...]]:
        """Return a row for each score of which some value was found outside the run folders."""
        everything = [*self.scored, *self.others]
        keys = dict.fromkeys(key for one in everything for key in one.elsewhere)
        members = [[self.scored[number] for number in numbers] for numbers in self.groups]
        members += [[other] for other in self.others]
        columns = [seeds.column("", group) for group in members]
        rows = []
        for label, key in zip(paper.labels(list(keys)), keys, strict=True):
            rows.append((label, *(_percent(column, key) for column in columns)))
        return rows

    def recipes(self) -> list[tuple[str, ...]]:
        """Return a row (setting, value in each column of runs) for each setting that differs."""
        rows = []
        for name, *cells in differences(self.runs):
            row = []
            for numbers in self.groups:
                row.append(", ".join(dict.fromkeys(cells[number] for number in numbers)))
            if len(set(row)) > 1:
                rows.append((name, *row))
        return rows

    def notes(self) -> list[str]:
        """Return a line for each thing to know of the tables."""
        lines = []
        largest = max(map(len, self.groups), default=1)
        if largest > 1:
            lines.append(
                "Runs that differ only in their seed are one column: mean ± sample standard"
                " deviation."
            )
        for one in (*self.scored, *self.others):
            for key in one.repeated:
                lines.append(
                    f"{one.name} has several scores of {key.label}: the first that was found is"
                    " used in tables for a paper."
                )
        return lines


def _percent(column: Column, key: Key) -> str:
    cell = column.cells.get(key)
    return NONE if cell is None else cell.text


def differences(compared: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return a row (setting, value in each run) for each setting of the recipes that is not the
    same in all.
    """
    names = list(dict.fromkeys(name for run in compared for name in run.settings))
    rows = [(name, *(_shown(run.settings.get(name)) for run in compared)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or NONE
    if isinstance(value, float):
        return f"{value:.8g}"
    return NONE if value is None or value == "" else str(value)


def scores(compared: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return a row (figure, value in each run) for each figure that at least one run has; scores
    are in percent.
    """
    each = [dict(_figures(run)) for run in compared]
    names = list(dict.fromkeys(name for figures in each for name in figures))
    return [(name, *(figures.get(name, NONE) for figures in each)) for name in names]


def _figures(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of what is known of a run: how far it came, its loss, and scores of
    it.
    """
    state = "finished" if run.record else "unfinished"
    yield "state", "imported" if run.record and run.record.imported else state
    recorded = run.record.steps if run.record else 0
    yield "steps", f"{max([recorded, *(line['step'] for line in run.lines)]):,}"
    loss, rates = run.last("total"), run.curve("rows_per_s")[1]
    if loss is not None:
        yield "loss", f"{loss:.4f}"
    if len(rates):
        yield "rows/s", f"{np.median(rates):,.0f}"
    if run.record:
        yield "parameters", f"{run.record.parameters:,}"
    steps, means = run.curve("eval/mean")
    if len(means):
        at = int(np.argmax(means))
        yield "best mean", f"{100 * means[at]:.2f}"
        yield "best after step", f"{int(steps[at]):,}"
    for figure in evaluated([run]):
        yield f"{figure.removeprefix('eval/')} at the end", f"{100 * run.last(figure):.2f}"
    for path in sorted(files_below(run.folder)):
        where = path.parent.relative_to(run.folder).as_posix()
        for name, value in _saved(path):
            yield (name if where == "." else f"{where}: {name}"), f"{100 * value:.2f}"


def _saved(path: Path) -> Iterator[tuple[str, float]]:
    """Yield (name, value 0 to 1) of the scores that ``dimefm eval`` wrote; raise DataError when
    they cannot be read.
    """
    for result in read_results(path):
        if result.task in RETRIEVALS:
            of = f"{result.dataset} " if result.dataset else ""
            protocol = result.task.removeprefix(RETRIEVAL)
            for name, value in result.metrics.items():
                yield f"{of}{name}{protocol}", value
        elif result.task == ZERO_SHOT_BY_TOKENS:
            yield f"{result.dataset}, by tokens", result.value
        elif result.task == ZERO_SHOT:
            yield result.dataset, result.value
        else:
            yield f"{result.dataset}, {result.task}", result.value


def as_dict(run: Run) -> dict:
    """Return a run's name, folder, figures as printed, and settings, for JSON."""
    return {
        "name": run.name,
        "folder": str(run.folder),
        "figures": dict(_figures(run)),
        "recipe": run.settings,
    }


def text(comparison: Comparison) -> str:
    """Return both tables for a terminal."""
    heads = tuple(comparison.names)
    of_runs = heads[: len(comparison.groups)]
    parts = _blocks([("", *heads), *comparison.figures()])
    different = comparison.recipes()
    if different:
        parts += _blocks([("recipe", *of_runs), *map(_narrow, different)])
    elif len(of_runs) > 1:
        parts.append("The recipes are the same.")
    parts += [textwrap.fill(note, WIDTH) for note in comparison.notes()]
    return "\n\n".join(parts)


def _blocks(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a table as one text, or as several of at most ``WIDTH`` columns where it is wider.

    Every one of them has the first column, and at least one other.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) + GAP for column in columns]
    blocks: list[list[int]] = []
    used = WIDTH
    for number in range(1, len(columns)):
        if not blocks or used + widths[number] > WIDTH + GAP:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(number)
        used += widths[number]
    parts = []
    for block in blocks:
        body = [(row[0], *(row[number] for number in block)) for row in rows]
        known = [row for row in body[1:] if any(cell != NONE for cell in row[1:])]
        parts.append("\n".join(aligned([body[0], *known])))
    return parts


def _narrow(row: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row with the middle of long cells left out, unless that is where they differ."""
    kept = WIDEST // 2 - 2
    cut = tuple(cell if len(cell) <= WIDEST else f"{cell[:kept]} .. {cell[-kept:]}" for cell in row)
    return cut if len(set(cut)) == len(set(row)) else row


def listing(found: Sequence[Run]) -> str:
    """Return a line for each run: how far it came and what it scores."""
    rows = {name: values for name, *values in scores(found)}
    kept = [name for name in ("state", "steps", "loss", "best mean") if name in rows]
    lines = zip(*(rows[name] for name in kept), strict=True)
    table_rows = [("run", *kept)]
    for run, line in zip(found, lines, strict=True):
        table_rows.append((run.name, *line))
    return "\n".join(aligned(table_rows))


def table(compared: Sequence[Run] | Comparison) -> str:
    """Return both tables as one CSV: which table, the row's name, and a column for each model."""
    comparison = compared if isinstance(compared, Comparison) else Comparison.of(compared)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("table", "name", *comparison.names))
    writer.writerows(
        ("score", name, *(cell.replace(",", "") for cell in cells))
        for name, *cells in comparison.figures()
    )
    empty = [""] * len(comparison.others)
    writer.writerows(("recipe", *row, *empty) for row in comparison.recipes())
    return file.getvalue()


def markdown(comparison: Comparison) -> str:
    """Return the tables and the plot as a Markdown page."""
    heads = comparison.names
    lines = ["# Runs compared", "", *markdown_table([("", *heads), *comparison.figures()]), ""]
    columns = comparison.columns()
    if columns:
        lines += ["## Scores", "", paper.markdown(columns), ""]
    if comparison.runs:
        lines += [f"![Curves]({PLOT})", "", "## Recipes", ""]
        different = comparison.recipes()
        of_runs = heads[: len(comparison.groups)]
        if different:
            lines += markdown_table([("setting", *of_runs), *different])
        else:
            lines.append("They are the same.")
    for note in comparison.notes():
        lines += ["", note]
    return "\n".join(lines) + "\n"


def for_paper(comparison: Comparison, form: str, transposed: bool = False) -> str:
    """Return the scores as a table in ``"latex"`` or ``"markdown"``, the best of each in bold.

    Raises DataError when nothing was scored.
    """
    columns = comparison.columns()
    if not columns:
        raise DataError(
            f"{', '.join(comparison.names)}: no scores were found for a table. Fix: run dimefm eval"
            " with --out in a run folder, or name the folder of its scores with --scores"
        )
    if form == "latex":
        return paper.latex(columns, transposed)
    return paper.markdown(columns, transposed)


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write the plot to ``out``, a .png, or plot, CSV, Markdown and LaTeX into the folder ``out``;
    return what was written.

    Raises DataError when no run has logged a step, and for another kind of picture.
    """
    if out.suffix.lower() in (".jpg", ".jpeg", ".pdf", ".svg"):
        raise DataError(
            f"--out {out}: the plot is a PNG. Fix: give a name that ends in .png, or a folder"
        )
    if out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        draw(comparison.runs, out)
        return [out]
    out.mkdir(parents=True, exist_ok=True)
    names = [TABLE, REPORT]
    if comparison.runs:
        draw(comparison.runs, out / PLOT)
        names.insert(0, PLOT)
    write_text(out / TABLE, table(comparison))
    write_report(out / REPORT, markdown(comparison))
    columns = comparison.columns()
    if columns:
        write_text(out / LATEX, paper.latex(columns))
        names.append(LATEX)
    return [out / name for name in names]
