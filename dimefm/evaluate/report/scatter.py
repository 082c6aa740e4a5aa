"""Charts with a point for each model, labeled as far as there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dimefm.evaluate.report import svg
from dimefm.evaluate.report.canvas import (
    SIZES,
    WIDE,
    Canvas,
    Margins,
    canvas,
    percent_ticks,
    shortened,
    text_width,
    ticks,
)
from dimefm.evaluate.report.svg import MUTED, PAPER, TEXT
from dimefm.runtime.printable import one_line

ROUND = (1, 2, 5)


@dataclass(frozen=True)
class Point:
    """One model: ``x`` above 0, ``y`` in percent; ``number`` is None for a published model."""

    x: float
    y: float
    label: str
    number: int | None = None


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: its title, how a number is written, and whether it is logarithmic."""

    title: str
    written: Callable[[float], str]
    is_log: bool = True


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Say whether two rectangles have a place in common."""
        apart = self.right < other.left or other.right < self.left
        return not (apart or self.top < other.bottom or other.top < self.bottom)


@dataclass(frozen=True)
class Line:
    """A line behind the points through the places ``x`` [n] and ``y`` [n]."""

    x: Sequence[float]
    y: Sequence[float]


def drawings(
    points: Sequence[Point],
    axis: Axis,
    y_title: str,
    name: str,
    title: str,
    description: str,
    line: Line | None = None,
) -> dict[str, str]:
    """Return the chart as SVG for each of the ``SIZES``, by the name of the size."""
    drawn = {}
    for size, width in SIZES:
        heights = [point.y for point in points]
        if line is not None:
            heights += line.y
        chart = _empty(points, axis, y_title, width, heights)
        if line is not None:
            chart.axes.plot(
                line.x, line.y, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1
            )
        hints = _draw_points(chart, points, axis, f"{name}-{size}")
        drawn[size] = svg.rendered(chart.figure, f"{name}-{size}", title, description, hints)
    return drawn


def _empty(
    points: Sequence[Point], axis: Axis, y_title: str, width: float, heights: Sequence[float]
) -> Canvas:
    """Return the chart with its axes, large enough for all points."""
    is_wide = width >= WIDE
    height = 400 if is_wide else 340
    chart = canvas(width, height, Margins(left=46, right=14, top=28, bottom=46))
    axes = chart.axes
    low, high = _limits([point.x for point in points], axis.is_log)
    if axis.is_log:
        axes.set_xscale("log")
    axes.set_xlim(low, high)
    bottom, top = _y_limits(heights)
    axes.set_ylim(bottom, top)
    places = percent_ticks(bottom, top)
    ticks(axes.yaxis, places, [f"{place:.0f}" for place in places])
    marks = _marks(low, high, axis.is_log, 8 if is_wide else 5)
    ticks(axes.xaxis, marks, [axis.written(mark) for mark in marks])
    axes.set_xlabel(axis.title, color=MUTED, fontsize=chart.letters - 1, labelpad=8)
    chart.figure.text(
        4 / width, 1 - 14 / height, one_line(y_title), color=MUTED, fontsize=chart.letters - 1
    )
    return chart


def _limits(values: Sequence[float], is_log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if is_log:
        span = max(math.log10(high / low), 0.6)
        middle = math.sqrt(low * high)
        half = 10 ** (span / 2 * 1.25)
        return middle / half, middle * half
    span = max(high - low, 1e-9)
    return low - span / 8, high + span / 8


def _y_limits(values: Sequence[float]) -> tuple[float, float]:
    span = max(max(values) - min(values), 4)
    return max(min(values) - span / 8, 0), min(max(values) + span / 8, 101)


def _marks(low: float, high: float, is_log: bool, most: int) -> list[float]:
    """Return round numbers on the horizontal axis."""
    if not is_log:
        return percent_ticks(low, high)
    for chosen in (ROUND, (1, 3), (1,)):
        marks = []
        for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
            marks += [digit * 10.0**exponent for digit in chosen]
        inside = [mark for mark in marks if low <= mark <= high]
        if len(inside) <= most:
            return inside
    return inside


def _draw_points(chart: Canvas, points: Sequence[Point], axis: Axis, name: str) -> dict[str, str]:
    """Draw the points and their labels, the given models' first; return the hints."""
    hints = {}
    ordered = sorted(points, key=lambda point: point.number is None)
    taken: list[Box] = []
    for place, point in enumerate(ordered):
        gid = f"{name}-point-{place}"
        is_given = point.number is not None
        ink = svg.color(point.number) if is_given else MUTED
        chart.axes.plot(
            [point.x],
            [point.y],
            marker="o",
            markersize=10 if is_given else 6,
            markerfacecolor=ink if is_given else PAPER,
            markeredgecolor=PAPER if is_given else ink,
            markeredgewidth=1.5 if is_given else 1.3,
            linestyle="none",
            clip_on=False,
            gid=gid,
            zorder=4 if is_given else 3,
        )
        hints[gid] = f"{point.label}: {point.y:.1f} %, {axis.written(point.x)}"
        x, y = _pixel(chart, point)
        taken.append(Box(x - 6, y - 6, x + 6, y + 6))
    for point in ordered:
        _label(chart, point, taken)
    return hints


def _pixel(chart: Canvas, point: Point) -> tuple[float, float]:
    x, y = chart.axes.transData.transform((point.x, point.y))
    return float(x), float(y)


def _label(chart: Canvas, point: Point, taken: list[Box]) -> None:
    """Write the label of a point where nothing else is, or not at all."""
    is_given = point.number is not None
    size = chart.letters if is_given else chart.letters - 2
    words = shortened(point.label, 26 if chart.width >= WIDE else 20)
    width = text_width(words, size)
    x, y = _pixel(chart, point)
    far = 10 if is_given else 7
    half = size * 0.6
    high = 2 * half
    middle = width / 2
    places = (
        (Box(x + far, y - half, x + far + width, y + half), "left", far, 0.0),
        (Box(x - far - width, y - half, x - far, y + half), "right", -far, 0.0),
        (Box(x - middle, y + far, x + middle, y + far + high), "center", 0.0, far + half),
        (Box(x - middle, y - far - high, x + middle, y - far), "center", 0.0, -far - half),
    )
    inside = [place for place in places if _is_inside(place[0], chart)]
    free = [place for place in inside if not any(place[0].meets(other) for other in taken)]
    if not free and is_given:
        free = inside or list(places)  # a model of the report is never without its name
    if not free:
        return
    box, side, right, up = free[0]
    taken.append(box)
    chart.axes.annotate(
        words,
        (point.x, point.y),
        xytext=(right, up),
        textcoords="offset points",
        ha=side,
        va="center",
        color=TEXT if is_given else MUTED,
        fontsize=size,
        fontweight="bold" if is_given else "normal",
        parse_math=False,
    )


def _is_inside(box: Box, chart: Canvas) -> bool:
    """Say whether a label is inside the chart and off its axes."""
    is_across = box.left >= 34 and box.right <= chart.width - 2
    return is_across and box.bottom >= 44 and box.top <= chart.height - 20
