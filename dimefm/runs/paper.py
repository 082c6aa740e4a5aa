"""Tables of scores for a paper: LaTeX with booktabs, and Markdown, the best of each score in bold.

A row is a model (or the runs of several seeds) and a column a score; transposed, the other way.
"""

from __future__ import annotations

from collections.abc import Sequence

from dimefm.runs.scored import Key
from dimefm.runs.seeds import NONE, Cell, Column
from dimefm.runtime.tables import markdown_table

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
CORNER = "model"

Grid = list[list[tuple[str, bool]]]
"""Text of each cell, and whether it is the best of its score; the first row and column are heads.
"""


def keys_of(columns: Sequence[Column]) -> list[Key]:
    """Return the scores that at least one column has, in order of task and of their first one."""
    keys = list(dict.fromkeys(key for one in columns for key in one.cells))
    tasks = list(dict.fromkeys(key.task for key in keys))
    return sorted(keys, key=lambda key: tasks.index(key.task))


def best_of(key: Key, columns: Sequence[Column]) -> set[int]:
    """Return the numbers of the columns whose score, as it is printed, is the best of several."""
    means = {
        number: round(one.cells[key].mean, 2)
        for number, one in enumerate(columns)
        if key in one.cells
    }
    if len(means) < 2:
        return set()
    best = min(means.values()) if key.lower_is_better else max(means.values())
    return {number for number, mean in means.items() if mean == best}


def labels(keys: Sequence[Key]) -> list[str]:
    """Return a head for each score; the metric is named where heads would be equal."""
    heads = [key.label for key in keys]
    return [
        f"{head}, {key.metric}" if heads.count(head) > 1 else head
        for head, key in zip(heads, keys, strict=True)
    ]


def grid(columns: Sequence[Column], transposed: bool = False) -> Grid:
    """Return the cells of the table."""
    keys = keys_of(columns)
    head = [(CORNER, False), *((label, False) for label in labels(keys))]
    rows: Grid = [head]
    best = {key: best_of(key, columns) for key in keys}
    for number, one in enumerate(columns):
        row = [(one.name, False)]
        for key in keys:
            row.append((_text(one.cells.get(key), one.size), number in best[key]))
        rows.append(row)
    return [list(cells) for cells in zip(*rows, strict=True)] if transposed else rows


def _text(cell: Cell | None, size: int) -> str:
    """Return a cell; one that not all runs of a column have says how many do."""
    if cell is None:
        return NONE
    return cell.text if cell.n == size else f"{cell.text} (n={cell.n})"


def markdown(columns: Sequence[Column], transposed: bool = False) -> str:
    """Return the table in Markdown."""
    rows = []
    for row in grid(columns, transposed):
        rows.append([f"**{text}**" if is_best else text for text, is_best in row])
    return "\n".join(markdown_table(rows))


def latex(columns: Sequence[Column], transposed: bool = False) -> str:
    """Return the table in LaTeX; it needs ``\\usepackage{booktabs}``."""
    cells = grid(columns, transposed)
    rows = []
    for row in cells:
        texts = []
        for text, is_best in row:
            escaped = "".join(ESCAPES.get(character, character) for character in text)
            texts.append(rf"\textbf{{{escaped}}}" if is_best else escaped)
        rows.append(" & ".join(texts) + r" \\")
    head, *body = rows
    lines = [
        "% \\usepackage{booktabs}; percent; of seeds the mean and sample standard deviation",
        rf"\begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"
