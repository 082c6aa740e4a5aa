"""Tables as text: aligned for a terminal, or in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Rows = Sequence[Sequence[str]]
"""Cells of a table, row by row; the first row is the head, and all rows have the same length."""

FIRST = (0,)


def aligned(rows: Rows, left: Collection[int] = FIRST) -> list[str]:
    """Return the lines of a table with a rule below its head.

    The columns whose numbers are in ``left`` are aligned to the left, the others to the right.
    """
    columns = []
    for number, cells in enumerate(zip(*rows, strict=True)):
        width = max(map(len, cells))
        column = ["-" * width]
        for cell in cells:
            if number in left:
                column.append(cell.ljust(width))
            else:
                column.append(cell.rjust(width))
        columns.append(column)
    rule, head, *body = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    return [
        head.rstrip(),
        rule,
        *[line.rstrip() for line in body],
    ]


def markdown_table(rows: Rows, left: Collection[int] = FIRST) -> list[str]:
    """Return the lines of a table in Markdown, with columns aligned as by :func:`aligned`."""
    marks = []
    for number in range(len(rows[0])):
        if number in left:
            marks.append("---")
        else:
            marks.append("---:")
    head, *body = [_row(row) for row in rows]
    rule = "|" + "|".join(marks) + "|"
    return [head, rule, *body]


def _row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table; a bar or an end of a line in a cell does not end it."""
    safe = [" ".join(cell.replace("|", "\\|").splitlines()) for cell in cells]
    return "| " + " | ".join(safe) + " |"
