"""Scores of any evaluation as text: an aligned table for a terminal, and a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping

from dimefm.evaluate import costs
from dimefm.evaluate.reports import FAILED, WIDTH, in_markdown, unreadable_images, wrapped
from dimefm.runs.scores import Result, Scores
from dimefm.runtime.printable import one_line
from dimefm.runtime.tables import aligned, markdown_table

COLUMNS = ("dataset", "task", "metric", "score", "chance", "samples")
TEXT_COLUMNS = (0, 1, 2)
"""Columns that are aligned to the left: dataset, task and metric."""

SPARE = ("chance", "samples", "metric")
"""Columns that a narrow terminal can do without; ``report.md`` has them."""

SPREAD = "±: standard deviation over the seeds"


def terminal(scores: Scores) -> str:
    """Return the scores as an aligned table, with the averages and notes below it.

    Of a table wider than 80 columns, those of ``SPARE`` are left out, the first one first.
    """
    lines = _narrow_table(_rows(scores))
    for remark in [*remarks(scores), *costs.speeds(scores.encoder)]:
        lines += ["", remark]
    return "\n".join(wrapped(line) for line in lines)


def _narrow_table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table with as many columns as fit."""
    kept = list(range(len(COLUMNS)))
    for name in ("", *SPARE):
        kept = [number for number in kept if COLUMNS[number] != name]
        narrow = [tuple(row[number] for number in kept) for row in rows]
        left = [place for place, number in enumerate(kept) if number in TEXT_COLUMNS]
        lines = aligned(narrow, left)
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def markdown(scores: Scores, title: str) -> str:
    """Return the scores as a Markdown page under ``title``, which names the kind of scores."""
    weights = (scores.weights_sha256 or "unknown")[:12]
    lines = [
        f"# {title} of {in_markdown(scores.model)}",
        "",
        f"Weights `{weights}`. {in_markdown(scores.protocol)}.",
        "",
        *markdown_table(
            [tuple(in_markdown(cell) for cell in row) for row in _rows(scores)], TEXT_COLUMNS
        ),
    ]
    for remark in remarks(scores):
        lines += ["", in_markdown(remark)]
    versions = [f"{name} {version}" for name, version in scores.libraries.items()]
    lines += ["", f"Made with {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def remarks(scores: Scores) -> list[str]:
    """Return a line for each average, note, unreadable image, and dataset without a score, and
    what the encoder costs.
    """
    lines = []
    for name, value in scores.summary.items():
        lines.append(f"{name}: {100 * value:.2f}")
    for result in scores.results:
        if result.note:
            lines.append(f"{one_line(result.dataset)}: {result.note}")
        if result.unreadable:
            lines.append(f"{one_line(result.dataset)}: {unreadable_images(result)}")
    unique = list(dict.fromkeys(lines))  # several tasks on a dataset have the same note
    if any(deviation_over_seeds(result) is not None for result in scores.results):
        unique.append(SPREAD)
    if scores.missing:
        unique.append(f"not here: {', '.join(scores.missing)}")
    for failure in scores.failed:
        unique.append(f"{FAILED}{failure.dataset}: {failure.reason}")
    if scores.pending:
        unique.append(f"still to come: {', '.join(scores.pending)}")
    return unique + costs.sizes(scores.encoder)


def deviation_over_seeds(result: Result) -> float | None:
    """Return the standard deviation of a score over several seeds, None where there is one seed."""
    interval = result.details.get("interval")
    if not isinstance(interval, Mapping) or interval.get("over") != "seeds":
        return None
    deviation = interval.get("deviation")
    return deviation if isinstance(deviation, float) else None


def _rows(scores: Scores) -> list[tuple[str, ...]]:
    """Return the table as text, its head first."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for result in scores.results:
        rows.append(_row(result))
    return rows


def _row(result: Result) -> tuple[str, ...]:
    """Return the cells of one result, in the order of ``COLUMNS``."""
    chance = "-"
    if result.chance is not None:
        chance = f"{100 * result.chance:.1f}"
    score = f"{100 * result.value:.2f}"
    deviation = deviation_over_seeds(result)
    if deviation is not None:
        score = f"{score} ± {100 * deviation:.2f}"
    return (
        one_line(result.dataset),
        result.task,
        result.main_metric,
        score,
        chance,
        f"{result.samples:,}",
    )
