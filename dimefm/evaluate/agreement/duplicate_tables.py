"""Near-duplicates as text: a table for a terminal, and a Markdown page."""

from __future__ import annotations

from dimefm.evaluate import score_tables
from dimefm.evaluate.reports import in_markdown, wrapped
from dimefm.runs.scores import Scores
from dimefm.runtime.printable import one_line
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.runtime.text import cut_in_the_middle

TEXT_COLUMNS = (0, 4)
LONGEST_NAME = 18


def terminal(scores: Scores) -> str:
    """Return the scores as an aligned table, with a line for each thing to know below it."""
    lines = aligned(_rows(scores), TEXT_COLUMNS)
    lines += ["", *_remarks(scores)]
    return "\n".join(wrapped(line) for line in lines)


def markdown(scores: Scores) -> str:
    """Return the scores as a Markdown page."""
    safe_rows = [tuple(in_markdown(cell) for cell in row) for row in _rows(scores)]
    lines = [
        f"# Near-duplicates of test images, and the scores of {in_markdown(scores.model)}",
        "",
        f"{in_markdown(scores.protocol)}.",
        "",
        *markdown_table(safe_rows, TEXT_COLUMNS),
    ]
    for remark in _remarks(scores):
        lines += ["", in_markdown(remark)]
    versions = [f"{name} {version}" for name, version in scores.libraries.items()]
    lines += ["", f"Made with {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def _rows(scores: Scores) -> list[tuple[str, ...]]:
    """Return the table as text, its head first."""
    head = ("dataset", "images", "duplicates", "share", "metric", "all", "without")
    rows: list[tuple[str, ...]] = [head]
    for result in scores.results:
        metric = result.details["metric"]
        rows.append(
            (
                cut_in_the_middle(one_line(result.dataset), LONGEST_NAME),
                f"{result.samples:,}",
                f"{result.details['images_with_duplicate']:,}",
                f"{100 * result.value:.2f}",
                metric,
                _percent(result.metrics.get(metric)),
                _percent(result.metrics.get(f"{metric} without near-duplicates")),
            )
        )
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _remarks(scores: Scores) -> list[str]:
    """Return a line on what was compared, and on the cosines of each dataset."""
    caches = scores.settings["caches"]
    n_rows = sum(cache["rows"] for cache in caches)
    lines = [
        f"duplicates: test images with a cosine of {scores.settings['threshold']} or more with one"
        f" of {n_rows:,} cached training images."
    ]
    if any(cache["crops"] for cache in caches):
        lines.append(
            "A cache holds random crops of its images: a copy of an image may stay unseen, since a"
            " crop of it is compared with the whole."
        )
    for result in scores.results:
        counts = result.details["images_by_cosine"]
        listed = ", ".join(f"{count:,} from {cosine}" for cosine, count in counts.items())
        middle = result.details["nearest"]["median"]
        lines.append(
            f"{one_line(result.dataset)}: {listed}; cosine of the nearest, median {middle:.3f}"
        )
    return lines + score_tables.remarks(scores)
