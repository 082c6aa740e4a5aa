"""Curves of runs: the loss and the scores over the steps, in one plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.errors import DataError
from dimefm.runs.run_files import Run, evaluated

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours that are told apart with any kind of sight. Source: Okabe and Ito, 2008; their yellow is
left out (too pale).
"""
STYLES = ("-", "--", ":")
PANELS = 6  # at most, in one plot


def draw(compared: Sequence[Run], path: Path) -> None:
    """Plot the loss and the scores of all runs over their steps into a PNG; raise DataError when no
    run has logged any.
    """
    figures = [
        name
        for name in ("total", *evaluated(compared))
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
