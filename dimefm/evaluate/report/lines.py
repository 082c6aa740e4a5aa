"""Charts of scores over the number of examples a class: a line for each model, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dimefm.evaluate.report import svg
from dimefm.evaluate.report.canvas import (
    SIZES,
    WIDE,
    Margins,
    canvas,
    percent_ticks,
    ticks,
)
from dimefm.evaluate.report.svg import MUTED, PAPER
from dimefm.runtime.printable import one_line


@dataclass(frozen=True)
class Curve:
    """A line of one model over the places 0, 1, ... of the axis; None where it has no value.

    ``values`` are in percent. ``intervals`` are their (low, high), None where unknown.
    """

    number: int
    label: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None]


def drawings(
    curves: Sequence[Curve],
    marks: Sequence[str],
    titles: tuple[str, str],
    name: str,
    title: str,
    description: str,
) -> dict[str, str]:
    """Return the chart as SVG for each of the ``SIZES``, by the name of the size.

    ``marks`` are the labels of the horizontal axis; ``titles`` are those of both axes.
    """
    drawn = {}
    for size, width in SIZES:
        words = (f"{name}-{size}", title, description)
        drawn[size] = _drawing(curves, marks, titles, width, words)
    return drawn


def _drawing(
    curves: Sequence[Curve],
    marks: Sequence[str],
    titles: tuple[str, str],
    width: float,
    words: tuple[str, str, str],
) -> str:
    height = 340 if width >= WIDE else 300
    chart = canvas(width, height, Margins(left=40, right=20, top=28, bottom=46))
    axes = chart.axes
    low, high = _limits(curves)
    axes.set_ylim(low, high)
    axes.set_xlim(-0.3, len(marks) - 0.7)
    places = percent_ticks(low, high)
    ticks(axes.yaxis, places, [f"{place:.0f}" for place in places])
    ticks(axes.xaxis, range(len(marks)), marks)
    axes.xaxis.grid(visible=False)
    x_title, y_title = titles
    axes.set_xlabel(x_title, color=MUTED, fontsize=chart.letters - 1, labelpad=8)
    chart.figure.text(
        4 / width, 1 - 14 / height, one_line(y_title), color=MUTED, fontsize=chart.letters - 1
    )
    hints: dict[str, str] = {}
    for row, curve in enumerate(curves):
        _draw_curve(axes, curve, marks, f"{words[0]}-{row}", hints)
    return svg.rendered(chart.figure, *words, hints)


def _draw_curve(axes, curve: Curve, marks: Sequence[str], name: str, hints: dict[str, str]) -> None:
    """Draw a line through the values that a curve has, and the interval of each."""
    ink = svg.color(curve.number)
    known = [place for place, value in enumerate(curve.values) if value is not None]
    values = [curve.values[place] for place in known]
    axes.plot(known, values, color=ink, linewidth=2)
    for place, value in zip(known, values, strict=True):
        gid = f"{name}-{place}"
        interval = curve.intervals[place]
        hints[gid] = f"{curve.label}, {marks[place]}: {value:.2f} %"
        if interval is not None:
            axes.plot([place] * 2, interval, color=ink, linewidth=1.4, marker="_", markersize=8)
            hints[gid] += f" ({interval[0]:.2f} to {interval[1]:.2f})"
        axes.plot(
            [place],
            [value],
            marker="o",
            markersize=8,
            markerfacecolor=ink,
            markeredgecolor=PAPER,
            markeredgewidth=1.5,
            linestyle="none",
            gid=gid,
        )


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the ends of the vertical axis."""
    values = []
    for curve in curves:
        values += [value for value in curve.values if value is not None]
        for interval in curve.intervals:
            values += interval or ()
    span = max(max(values) - min(values), 4)
    return max(min(values) - span / 8, 0), min(max(values) + span / 8, 101)
