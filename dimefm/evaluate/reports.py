"""Zero-shot scores as text: an aligned table for a terminal, and a Markdown page."""

from __future__ import annotations

from dimefm.runs.scores import Result, ZeroShotScores
from dimefm.runtime.tables import aligned, markdown_table

COLUMNS = ("dataset", "metric", "score", "chance", "images", "classes", "note")
TEXT_COLUMNS = (0, 1, 6)
"""Columns that are aligned to the left: dataset, metric and note."""


def terminal(scores: ZeroShotScores) -> str:
    """Return the scores as an aligned table, with a line for each thing to know below it."""
    lines = aligned(_rows(scores), TEXT_COLUMNS)
    lines += ["", _mean(scores), *_remarks(scores)]
    return "\n".join(lines)


def markdown(scores: ZeroShotScores) -> str:
    """Return the scores as a Markdown report."""
    weights = (scores.weights_sha256 or "unknown")[:12]
    lines = [
        f"# Zero-shot scores of `{scores.model}`",
        "",
        (
            f"Weights `{weights}`, image tower {scores.image_parameters:,} parameters, text"
            f" tower {scores.text_parameters:,}. {scores.protocol}."
        ),
        "",
        *markdown_table(_rows(scores), TEXT_COLUMNS),
    ]
    for remark in [_mean(scores), *_remarks(scores)]:
        lines += ["", _sentence(remark)]
    versions = [f"{name} {version}" for name, version in scores.libraries.items()]
    lines += ["", f"Made with {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def _rows(scores: ZeroShotScores) -> list[tuple[str, ...]]:
    """Return the table as text, its head first."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for result in scores.results:
        rows.append(_row(result))
    return rows


def _row(result: Result) -> tuple[str, ...]:
    """Return the cells of one dataset, in the order of ``COLUMNS``."""
    notes = []
    if result.note:
        notes.append(result.note)
    if result.unreadable:
        notes.append(f"{result.unreadable} unreadable images left out")
    chance = "-"
    if result.chance is not None:
        chance = f"{100 * result.chance:.1f}"
    return (
        result.dataset,
        result.main_metric,
        f"{100 * result.value:.2f}",
        chance,
        f"{result.samples:,}",
        str(result.details["classes"]),
        "; ".join(notes),
    )


def _mean(scores: ZeroShotScores) -> str:
    """Return the line on the mean, and whether it is the ELEVATER average."""
    count = len(scores.results) - len(scores.not_in_mean)
    percent = f"{100 * scores.mean:.2f}"
    if scores.is_elevater_average:
        return f"ELEVATER average over all {count} sets: {percent}"
    sets = "set" if count == 1 else "sets"
    comparison = ", by tokens" if scores.by_tokens else ""
    difference = "is by rows" if scores.by_tokens else "needs all 20"
    return (
        f"mean over the {count} {sets} here{comparison}: {percent} (not the ELEVATER average,"
        f" which {difference})"
    )


def _remarks(scores: ZeroShotScores) -> list[str]:
    """Return a line for each group of datasets that are not in the mean, and for each failure."""
    lines = []
    if scores.not_in_mean:
        lines.append(f"outside ELEVATER, not in the mean: {', '.join(scores.not_in_mean)}")
    if scores.missing:
        lines.append(f"not here: {', '.join(scores.missing)}")
    for failure in scores.failed:
        lines.append(f"failed: {failure.dataset}: {failure.reason}")
    if scores.pending:
        lines.append(f"still to come: {', '.join(scores.pending)}")
    return lines


def _sentence(line: str) -> str:
    return line[0].upper() + line[1:] + "."
