"""An empty chart of a given size in pixels, with a calm grid, and room for its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dimefm.evaluate.report.svg import GRID, MUTED, PIXELS, TEXT
from dimefm.runtime.printable import one_line

WIDE = 900
NARROW = 350
SIZES = (("wide", WIDE), ("narrow", NARROW))
"""Widths that each chart is drawn at, in pixels: for a desktop and for a phone."""

LETTER = 0.59
"""Width of a letter of the page's fonts, in units of the size of the font, about."""

LONGEST = 30
"""Characters of a label in a chart at most."""


@dataclass(frozen=True)
class Margins:
    """Pixels around the area of a chart."""

    left: float = 8
    right: float = 8
    top: float = 8
    bottom: float = 24


@dataclass
class Canvas:
    """A chart: its figure and axes, its size in pixels, and the size of its letters."""

    figure: Any
    axes: Any
    width: float
    height: float
    letters: float


def canvas(width: float, height: float, margins: Margins) -> Canvas:
    """Return an empty chart of ``width`` x ``height`` pixels."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS)
        FigureCanvasSVG(figure)
        inner_width = width - margins.left - margins.right
        inner_height = height - margins.top - margins.bottom
        box = (
            margins.left / width,
            margins.bottom / height,
            inner_width / width,
            inner_height / height,
        )
        axes = figure.add_axes(box)
    axes.set_facecolor("none")
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    letters = 14 if width >= WIDE else 12.5
    axes.tick_params(length=0, labelsize=letters - 1, labelcolor=MUTED, pad=6)
    axes.set_axisbelow(True)
    return Canvas(figure, axes, width, height, letters)


def write(
    chart: Canvas, x: float, y: float, words: str, *, ink: str = TEXT, bold: bool = False, **options
) -> None:
    """Write words at a place of the chart's data; ``options`` are those of matplotlib."""
    size = options.pop("size", chart.letters)
    weight = "bold" if bold else "normal"
    chart.axes.text(
        x,
        y,
        one_line(words),
        color=ink,
        fontsize=size,
        fontweight=weight,
        parse_math=False,
        **options,
    )


def ticks(axis: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    """Set the marks of an axis and their labels, and a line of the grid at each."""
    axis.set_ticks(list(places), labels=list(labels))
    axis.set_minor_formatter(_nothing)
    axis.set_tick_params(which="minor", length=0)
    axis.grid(visible=True, color=GRID, linewidth=1)


def _nothing(value: float, place: int | None = None) -> str:
    return ""


def text_width(words: str, size: float) -> float:
    """Return the width of words in pixels, about."""
    return LETTER * size * len(words)


def shortened(words: str, longest: int = LONGEST) -> str:
    """Return words in one line, without their middle where they are too long."""
    words = one_line(words)
    if len(words) <= longest:
        return words
    end = longest // 2 - 1
    return f"{words[: longest - end - 1]}…{words[-end:]}"


def percent_ticks(low: float, high: float) -> list[float]:
    """Return round percentages from ``low`` to ``high``, at most eight."""
    for step in (1, 2, 5, 10, 20, 25, 50):
        first = -(-low // step) * step
        places = []
        place = first
        while place <= high:
            places.append(place)
            place += step
        if len(places) <= 7:
            return places
    return [low, high]
