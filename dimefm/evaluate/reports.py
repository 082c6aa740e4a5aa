"""Zero-shot scores as text: an aligned table for a terminal, and a Markdown page."""

from __future__ import annotations

import html
import textwrap

from dimefm.evaluate import costs
from dimefm.runs.scores import UNREADABLE_AS_WRONG, Result, ZeroShotScores
from dimefm.runtime.printable import one_line
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.runtime.text import cut_in_the_middle

COLUMNS = ("dataset", "metric", "score", "chance", "images", "classes", "note")
TEXT_COLUMNS = (0, 1, 6)
"""Columns that are aligned to the left: dataset, metric and note."""

FAILED = "failed: "
WIDTH = 80
"""Columns of a terminal."""

LEAST_NAME = 20
"""Characters that a dataset's name has at least in a terminal."""


def terminal(scores: ZeroShotScores) -> str:
    """Return the scores as an aligned table of at most 80 columns, with the notes and a line for
    each thing to know below it.
    """
    rows = _rows(scores)
    numbers = [row[:-1] for row in rows]
    other_widths = [max(map(len, column)) + 2 for column in zip(*numbers, strict=True)][1:]
    longest = max(WIDTH - sum(other_widths), LEAST_NAME)
    shown = [(cut_in_the_middle(name, longest), *cells) for name, *cells in numbers]
    lines = aligned(shown, TEXT_COLUMNS)
    notes = [f"{row[0]}: {row[-1]}" for row in rows[1:] if row[-1]]
    if notes:
        lines += ["", *notes]
    costs_of_model = [*costs.sizes(scores.encoder), *costs.speeds(scores.encoder)]
    lines += ["", _mean(scores), *_remarks(scores), *costs_of_model]
    return "\n".join(wrapped(line) for line in lines)


def wrapped(line: str) -> str:
    """Return a line for a terminal, broken between words; a failure and its reason stay a line."""
    line = one_line(line)
    if len(line) <= WIDTH or line.startswith(FAILED):
        return line
    return textwrap.fill(
        line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def markdown(scores: ZeroShotScores) -> str:
    """Return the scores as a Markdown report."""
    weights = (scores.weights_sha256 or "unknown")[:12]
    rows = _rows(scores)
    safe_rows = [tuple(in_markdown(cell) for cell in row) for row in rows]
    lines = [
        f"# Zero-shot scores of {in_markdown(scores.model)}",
        "",
        (
            f"Weights `{weights}`, image tower {scores.image_parameters:,} parameters, text"
            f" tower {scores.text_parameters:,}. {scores.protocol}."
        ),
        "",
        *markdown_table(safe_rows, TEXT_COLUMNS),
    ]
    for remark in [_mean(scores), *_remarks(scores), *costs.sizes(scores.encoder)]:
        lines += ["", in_markdown(_sentence(remark))]
    versions = [f"{name} {version}" for name, version in scores.libraries.items()]
    lines += ["", f"Made with {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def in_markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no HTML, no code, no control characters."""
    return html.escape(one_line(text), quote=False).replace("`", "\\`")


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
        notes.append(unreadable_images(result))
    chance = "-"
    if result.chance is not None:
        chance = f"{100 * result.chance:.1f}"
    return (
        one_line(result.dataset),
        result.main_metric,
        f"{100 * result.value:.2f}",
        chance,
        f"{result.samples:,}",
        str(result.details["classes"]),
        "; ".join(notes),
    )


def unreadable_images(result: Result) -> str:
    """Return how many images were left out, and the score with them as wrong answers."""
    total = result.samples + result.unreadable
    left_out = f"{result.unreadable:,} unreadable images left out of {total:,}"
    as_wrong = result.details.get(UNREADABLE_AS_WRONG)
    if as_wrong is None:
        return left_out
    return f"{left_out}; as wrong answers they make it {100 * as_wrong:.2f}"


def _mean(scores: ZeroShotScores) -> str:
    """Return the line on the mean, and whether it is the ELEVATER average."""
    count = len(scores.results) - len(scores.not_in_mean)
    percent = f"{100 * scores.mean:.2f}"
    if scores.is_elevater_average:
        return f"ELEVATER average over all {count} sets: {percent}"
    sets = "set" if count == 1 else "sets"
    comparison = ", by tokens" if scores.by_tokens else ""
    difference = "needs all 20"
    if scores.by_tokens:
        difference = "is by rows"
    elif scores.metric is not None:
        difference = "has the metrics of the cards"
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
        lines.append(f"{FAILED}{failure.dataset}: {failure.reason}")
    if scores.pending:
        lines.append(f"still to come: {', '.join(scores.pending)}")
    return lines


def _sentence(line: str) -> str:
    return line[0].upper() + line[1:] + "."
