"""Runs side by side: curves in one plot, and tables of what their recipes differ in and of what
they score.

Everything is read from the run folders as training and evaluation leave them; a run that is not
finished is read as far as it has come.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.errors import DataError, ModelError, RecipeError
from dimefm.recipe import KEYS, Recipe, renamed
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.runs.scores import RETRIEVAL, SCORES, ZERO_SHOT_BY_TOKENS, read_results
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.storage.files import write_report, write_text
from dimefm.storage.small_files import parse_json, read_toml

PLOT, TABLE, REPORT = "compare.png", "compare.csv", "compare.md"
RECIPE = "recipe.toml"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours that are told apart with any kind of sight. Source: Okabe and Ito, 2008; their yellow is
left out (too pale).
"""
STYLES = ("-", "--", ":")
PANELS = 6  # at most, in one plot
NONE = "-"
WIDEST = 40  # characters of a setting in a terminal


@dataclass(frozen=True)
class Run:
    """One run folder: its settings by name, the lines of its log, and ``run.json``, None as
    long as it is not finished.
    """

    name: str
    folder: Path
    settings: dict[str, object]
    lines: list[dict]
    record: RunRecord | None

    def curve(self, figure: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (steps [n], values [n]) of a figure of the log."""
        found = [(line["step"], line[figure]) for line in self.lines if figure in line]
        pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def last(self, figure: str) -> float | None:
        """Return the latest value of a figure of the log, None when there is none."""
        values = self.curve(figure)[1]
        return float(values[-1]) if len(values) else None


def read_run(folder: Path, name: str | None = None) -> Run:
    """Return the run in ``folder``, called ``name``; raise ModelError when it is no run folder, or
    a damaged one.
    """
    path = folder / RECIPE
    if not path.is_file():
        imported = _imported(folder)
        if imported is not None:
            return Run(name or folder.resolve().name, folder, {}, [], imported)
        raise ModelError(
            f"{folder}: no run folder, for it has no {RECIPE}. Fix: name a folder that dimefm train"
            " wrote"
        )
    try:
        settings = read_toml(path)
        lines = _log(folder / runs.LOG)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: cannot be read as a run folder ({error}). Fix: restore its files, or leave"
            " it out"
        ) from error
    record = runs.read(folder) if (folder / runs.FILE).exists() else None
    return Run(
        name or folder.resolve().name,
        folder,
        _flat(_looked_at({**Recipe().settings(), **renamed(settings)})),
        lines,
        record,
    )


def _imported(folder: Path) -> RunRecord | None:
    """Return the record of weights that were imported, which have no recipe; else None."""
    if not (folder / runs.FILE).is_file():
        return None
    try:
        record = runs.read(folder)
    except ModelError:  # another program's file, or a damaged one
        return None
    return None if record.imported is None else record


def _looked_at(settings: dict[str, Any]) -> dict[str, object]:
    """Return the settings without those that the run does not look at, e.g. flips of the center."""
    try:
        recipe = Recipe(**settings)
    except RecipeError:  # of a newer version; it is compared by what its file has
        return settings
    ignored = {n for n, key in KEYS.items() if key.looked_at is not None and recipe.is_ignored(n)}
    return {name: value for name, value in settings.items() if name not in ignored}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of the folders, each once, called by the last part of its path, or all of it
    if need be.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    names = [folder.resolve().name for folder in unique]
    return [
        read_run(one, name if names.count(name) == 1 else str(one))
        for one, name in zip(unique, names, strict=True)
    ]


def runs_below(folder: Path) -> list[Run]:
    """Return the runs in the folders directly in ``folder``, by name; raise DataError when it is
    absent or has none.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder. Fix: give the folder that holds run folders"
        )
    found = {path.parent for path in folder.glob(f"*/{RECIPE}")}
    found |= {path.parent for path in folder.glob(f"*/{runs.FILE}") if _imported(path.parent)}
    if not found:
        raise DataError(
            f"{folder}: none of its folders is a run (has a {RECIPE}). Fix: give the folder that"
            " holds run folders"
        )
    return read_runs(sorted(found))


def _log(path: Path) -> list[dict]:
    """Return the lines of a log; the last one may be half written, and is then left out."""
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    lines = [parse_json(line) for line in whole]
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{path.name} line {number} has no 'step'")
    return lines


def _flat(table: dict, above: str = "") -> dict[str, object]:
    """Return the leaves of nested tables under names like ``losses.dime.vl.weight``."""
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


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
    for figure in _evaluated([run]):
        yield f"{figure.removeprefix('eval/')} at the end", f"{100 * run.last(figure):.2f}"
    for path in sorted([*run.folder.glob(SCORES), *run.folder.glob(f"*/{SCORES}")]):
        where = path.parent.relative_to(run.folder).as_posix()
        for name, value in _saved(path):
            yield (name if where == "." else f"{where}: {name}"), f"{100 * value:.2f}"


def _saved(path: Path) -> Iterator[tuple[str, float]]:
    """Yield (name, value 0 to 1) of the scores that ``dimefm eval`` wrote; raise DataError when
    they cannot be read.
    """
    for result in read_results(path):
        if result.task == RETRIEVAL:
            yield from result.metrics.items()
        elif result.task == ZERO_SHOT_BY_TOKENS:
            yield f"{result.dataset}, by tokens", result.value
        else:
            yield result.dataset, result.value


def _evaluated(compared: Sequence[Run]) -> list[str]:
    """Return the scores that the logs hold, the mean first, which is left out where it is of one
    dataset only.
    """
    names = dict.fromkeys(
        name for run in compared for line in run.lines for name in line if name.startswith("eval/")
    )
    sets = [name for name in names if name != "eval/mean"]
    return [*(["eval/mean"] if len(sets) > 1 else []), *sets]


def as_dict(run: Run) -> dict:
    """Return a run's name, folder, figures as printed, and settings, for JSON."""
    return {
        "name": run.name,
        "folder": str(run.folder),
        "figures": dict(_figures(run)),
        "recipe": run.settings,
    }


def text(compared: Sequence[Run]) -> str:
    """Return both tables for a terminal."""
    heads = tuple(run.name for run in compared)
    parts = ["\n".join(aligned([("", *heads), *scores(compared)]))]
    different = differences(compared)
    if different:
        parts.append("\n".join(aligned([("recipe", *heads), *map(_narrow, different)])))
    elif len(compared) > 1:
        parts.append("The recipes are the same.")
    return "\n\n".join(parts)


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


def table(compared: Sequence[Run]) -> str:
    """Return both tables as one CSV: which table, the row's name, and a column for each run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("table", "name", *(run.name for run in compared)))
    writer.writerows(
        ("score", name, *(cell.replace(",", "") for cell in cells))
        for name, *cells in scores(compared)
    )
    writer.writerows(("recipe", *row) for row in differences(compared))
    return file.getvalue()


def markdown(compared: Sequence[Run]) -> str:
    """Return both tables and the plot as a Markdown page."""
    lines = [
        "# Runs compared",
        "",
        *_pipes("", scores(compared), compared),
        "",
        f"![Curves]({PLOT})",
        "",
        "## Recipes",
        "",
    ]
    different = differences(compared)
    return (
        "\n".join(
            [
                *lines,
                *(_pipes("setting", different, compared) if different else ["They are the same."]),
            ]
        )
        + "\n"
    )


def _pipes(corner: str, rows: Sequence[tuple[str, ...]], compared: Sequence[Run]) -> list[str]:
    head = (corner, *(run.name for run in compared))
    return markdown_table([head, *rows])


def write(compared: Sequence[Run], out: Path) -> list[Path]:
    """Write the plot to ``out``, a .png, or plot, CSV and Markdown into the folder ``out``; return
    what was written.

    Raises DataError when no run has logged a step, and for another kind of picture.
    """
    if out.suffix.lower() in (".jpg", ".jpeg", ".pdf", ".svg"):
        raise DataError(
            f"--out {out}: the plot is a PNG. Fix: give a name that ends in .png, or a folder"
        )
    if out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        draw(compared, out)
        return [out]
    out.mkdir(parents=True, exist_ok=True)
    draw(compared, out / PLOT)
    write_text(out / TABLE, table(compared))
    write_report(out / REPORT, markdown(compared))
    return [out / name for name in (PLOT, TABLE, REPORT)]


def draw(compared: Sequence[Run], path: Path) -> None:
    """Plot the loss and the scores of all runs over their steps into a PNG; raise DataError when no
    run has logged any.
    """
    figures = [
        name
        for name in ("total", *_evaluated(compared))
        if any(len(run.curve(name)[0]) for run in compared)
    ]
    figures = figures[:PANELS]
    if not figures:
        raise DataError(
            f"{', '.join(run.name for run in compared)}: no step is logged yet, so there is nothing"
            " to plot. Fix: wait for the first logged step, or name other runs"
        )
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 2 if len(figures) == 4 else min(len(figures), 3)
    rows, wide = -(-len(figures) // columns), max(4.6 * columns, 6.4)
    legend = max(
        1, min(len(compared), int(12 * wide / (6 + max(len(run.name) for run in compared))))
    )
    high = 3.4 * rows + 0.25 * -(-len(compared) // legend)
    figure, grid = plt.subplots(
        rows, columns, figsize=(wide, high), layout="constrained", squeeze=False
    )
    for axes, name in zip(grid.flat, figures, strict=False):
        _panel(axes, compared, name)
    for axes in grid.flat[len(figures) :]:
        axes.set_visible(False)
    lines = [
        plt.Line2D([], [], color=_colour(i), linestyle=_style(i), linewidth=2)
        for i in range(len(compared))
    ]
    figure.legend(
        lines,
        [run.name.replace("$", r"\$") for run in compared],
        loc="outside lower center",
        ncols=legend,
        frameon=False,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axes, compared: Sequence[Run], name: str) -> None:
    """Draw one figure of all runs; a long noisy curve stands behind its running mean."""
    score = name.startswith("eval/")
    for number, run in enumerate(compared):
        steps, values = run.curve(name)
        values = 100 * values if score else values
        look = {"color": _colour(number), "linestyle": _style(number)}
        width = 1 if score else max(1, len(values) // 40)
        if width > 1:
            axes.plot(steps, values, color=_colour(number), linewidth=0.6, alpha=0.25)
            values = np.convolve(values, np.ones(width) / width, "valid")
            steps = steps[width - 1 :]
        axes.plot(
            steps,
            values,
            linewidth=1.8,
            marker="o" if score or len(steps) == 1 else None,
            markersize=3.5,
            **look,
        )
    axes.set(xlabel="step", ylabel="zero-shot score, %" if score else "loss")
    axes.set_title(
        "loss"
        if not score
        else "mean of all datasets"
        if name == "eval/mean"
        else name.removeprefix("eval/").replace("$", r"\$")
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _style(number: int) -> str:
    return STYLES[number // len(COLOURS) % len(STYLES)]
