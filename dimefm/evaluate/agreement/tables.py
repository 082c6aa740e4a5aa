"""The agreement of two models as text: tables for a terminal, and a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dimefm.evaluate import score_tables
from dimefm.evaluate.reports import in_markdown, wrapped
from dimefm.runs.scores import Result, Scores
from dimefm.runtime.printable import one_line
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.runtime.text import cut_in_the_middle

SHORT_NAME = 13
LONGEST_NAME = 18
"""Characters of a name: no table is wider than a terminal of 80 columns."""

SHOWN = 5
"""Forgotten classes of a dataset that are shown."""

Table = list[tuple[str, ...]]


def terminal(scores: Scores) -> str:
    """Return the tables, each under its title, and a line for each thing to know."""
    lines: list[str] = []
    for title, rows, text_columns in _tables(scores):
        lines += [title, "", *aligned(rows, text_columns), ""]
    lines += _remarks(scores)
    return "\n".join(wrapped(line) for line in lines)


def markdown(scores: Scores) -> str:
    """Return the scores as a Markdown page."""
    teacher = scores.settings["teacher"]["model"]
    lines = [
        f"# Agreement of {in_markdown(scores.model)} with {in_markdown(teacher)}",
        "",
        f"{in_markdown(scores.protocol)}.",
        "",
    ]
    for title, rows, text_columns in _tables(scores):
        safe_rows = [tuple(in_markdown(cell) for cell in row) for row in rows]
        lines += [f"## {title}", "", *markdown_table(safe_rows, text_columns), ""]
    for remark in _remarks(scores):
        lines += [in_markdown(remark), ""]
    versions = [f"{name} {version}" for name, version in scores.libraries.items()]
    lines += [f"Made with {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def _tables(scores: Scores) -> list[tuple[str, Table, tuple[int, ...]]]:
    """Return title, rows and text columns of each table."""
    tables = [
        ("Agreement", _agreement(scores.results), (0,)),
        ("Scores of both models", _both(scores.results), (0, 1)),
    ]
    calibration = _calibration(scores.results)
    if len(calibration) > 1:
        tables.append(("Expected calibration errors", calibration, (0,)))
    forgotten = _forgotten(scores.results)
    if len(forgotten) > 1:
        tables.append(("Forgotten classes (all: forgotten.csv)", forgotten, (0, 1)))
    return tables


def _agreement(results: Sequence[Result]) -> Table:
    """Return the table of agreement, its head first."""
    rows: Table = [("dataset", "top-1", "image", "p5", "text", "p5", "rank", "KL", "images")]
    for result in results:
        details = result.details
        rows.append(
            (
                _name(result.dataset, SHORT_NAME),
                f"{100 * result.value:.2f}",
                *_closeness(details["image"]),
                *_closeness(details["text"]),
                _number(details["rank_correlation"]),
                _number(details["kl_teacher_student"]),
                f"{result.samples:,}",
            )
        )
    return rows


def _closeness(entry: dict[str, Any]) -> tuple[str, str]:
    return _number(entry["mean"]), _number(entry["low"])


def _both(results: Sequence[Result]) -> Table:
    """Return the table of the scores of both models, its head first."""
    head = ("dataset", "metric", "student", "teacher", "difference", "p")
    rows: Table = [head]
    for result in results:
        metric = result.details["metric"]
        rows.append(
            (
                _name(result.dataset),
                metric,
                _percent(result.metrics[f"student {metric}"]),
                _percent(result.metrics[f"teacher {metric}"]),
                *_difference(result.details["difference"]),
            )
        )
    return rows


def _calibration(results: Sequence[Result]) -> Table:
    """Return the table of calibration errors, its head first."""
    rows: Table = [("dataset", "student", "teacher")]
    for result in results:
        student = result.metrics.get("student ECE")
        if student is not None:
            teacher = result.metrics["teacher ECE"]
            rows.append((_name(result.dataset), _percent(student), _percent(teacher)))
    return rows


def _difference(entry: dict[str, Any] | None) -> tuple[str, str]:
    """Return the difference with half of its interval on either side, and its p."""
    if entry is None:
        return "-", "-"
    low = 100 * entry["low"]
    high = 100 * entry["high"]
    return f"{low:+.1f} to {high:+.1f}", f"{entry['p_value']:.3f}"


def _forgotten(results: Sequence[Result]) -> Table:
    """Return the table of the classes with the largest losses, its head first."""
    rows: Table = [("dataset", "class", "teacher", "student", "lost", "gained", "images")]
    for result in results:
        for entry in result.details["forgotten"][:SHOWN]:
            rows.append(
                (
                    _name(result.dataset),
                    _name(entry["name"]),
                    _percent(entry["teacher"]),
                    _percent(entry["student"]),
                    "-" if entry["lost"] is None else f"{entry['lost']:,}",
                    "-" if entry["gained"] is None else f"{entry['gained']:,}",
                    f"{entry['images']:,}",
                )
            )
    return rows


def _remarks(scores: Scores) -> list[str]:
    """Return a line on how the numbers are meant, and on what is missing."""
    reason = scores.settings["one_space"]
    if reason:
        measure = f"image, text: cosine, mean and 5th percentile ({reason})."
    else:
        measure = (
            "image, text: linear CKA, since nothing says that both models embed into one space; of"
            " fewer rows than dimensions it is too high."
        )
    lines = [
        f"{measure} text is over the classes.",
        "rank: Spearman's correlation of the class scores of an image, mean. KL: teacher to"
        " student, nats.",
        f"difference: student less teacher, {_level(scores)} interval by paired bootstrap over"
        f" images. Calibration: {scores.settings['bins']} bins, softmax at scale"
        f" {scores.settings['scale']:.0f}.",
    ]
    return lines + score_tables.remarks(scores)


def _level(scores: Scores) -> str:
    for result in scores.results:
        difference = result.details["difference"]
        if difference is not None:
            return f"{100 * difference['level']:.0f} %"
    return "95 %"


def _name(text: str, longest: int = LONGEST_NAME) -> str:
    return cut_in_the_middle(one_line(text), longest)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
