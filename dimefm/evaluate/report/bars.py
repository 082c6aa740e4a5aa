"""Charts with a group of bars for each dataset: a bar for each model, and a mark for chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dimefm.evaluate.report import svg
from dimefm.evaluate.report.canvas import (
    LONGEST,
    SIZES,
    WIDE,
    Margins,
    canvas,
    percent_ticks,
    shortened,
    text_width,
    ticks,
    write,
)
from dimefm.evaluate.report.svg import MUTED, TEXT

BAR = 17
"""Height of a bar in pixels, with the gap to the next one."""

GAP = 20
"""Pixels between two groups of bars."""

NEAR = 0.09
"""Share of the axis to the right of a bar where the mark for chance would cross the bar's value."""

LIMITS = (10, 25, 50, 100)
"""Ends that the axis may have, in percent."""

ROOM = 40
"""Pixels to the right of the longest bar, for its value."""


@dataclass(frozen=True)
class Bar:
    """One bar: the number of its model, its name, and its value in percent, None without one.

    ``low`` and ``high`` are the ends of its interval, None where there is none.
    """

    number: int
    label: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Group:
    """The bars of one dataset, and what chance reaches there in percent, None if unknown."""

    label: str
    bars: Sequence[Bar]
    chance: float | None = None


def drawings(groups: Sequence[Group], name: str, title: str, description: str) -> dict[str, str]:
    """Return the chart as SVG for each of the ``SIZES``, by the name of the size."""
    return {
        size: _drawing(groups, width, f"{name}-{size}", title, description) for size, width in SIZES
    }


def _drawing(groups: Sequence[Group], width: float, name: str, title: str, description: str) -> str:
    is_wide = width >= WIDE
    longest = max(text_width(shortened(group.label), 14) for group in groups)
    left = longest + 16 if is_wide else 4
    head = 0 if is_wide else 20
    heights = [head + BAR * len(group.bars) + GAP for group in groups]
    height = sum(heights) + 34
    chart = canvas(width, height, Margins(left=left, right=ROOM, top=4, bottom=30))
    axes = chart.axes
    total = sum(heights)
    axes.set_ylim(total, 0)
    limit = _limit(groups)
    axes.set_xlim(0, limit)
    places = percent_ticks(0, limit)
    ticks(axes.xaxis, places, [f"{place:.0f} %" for place in places])
    axes.set_yticks([])
    hints: dict[str, str] = {}
    top = 0.0
    for place, (group, group_height) in enumerate(zip(groups, heights, strict=True)):
        middle = top + head + BAR * len(group.bars) / 2
        label = shortened(group.label, LONGEST if is_wide else 42)
        if is_wide:
            write(chart, -0.012 * limit, middle, label, ha="right", va="center")
        else:
            write(chart, 0, top + 10, label, va="center")
        _draw_group(chart, group, top + head, f"{name}-{place}", hints)
        top += group_height
    return svg.rendered(chart.figure, name, title, description, hints)


def _limit(groups: Sequence[Group]) -> float:
    """Return the end of the axis in percent: 100, or less where all bars are short."""
    longest = 0.0
    for group in groups:
        ends = [100 * (group.chance or 0)]
        ends += [max(bar.value or 0, bar.high or 0) for bar in group.bars]
        longest = max(longest, *ends)
    for limit in LIMITS:
        if longest <= limit * 0.95:
            return limit
    return LIMITS[-1]


def _draw_group(chart, group: Group, top: float, name: str, hints: dict[str, str]) -> None:
    """Draw the bars of a group downwards from ``top``, and the mark for chance over them."""
    axes = chart.axes
    for row, bar in enumerate(group.bars):
        if bar.value is None:
            continue
        middle = top + BAR * (row + 0.5)
        gid = f"{name}-{row}"
        axes.barh(middle, bar.value, BAR - 4, color=svg.color(bar.number), gid=gid)
        hints[gid] = f"{group.label}, {bar.label}: {bar.value:.2f} %"
        end = bar.value
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [middle] * 2, color=TEXT, linewidth=1.2, clip_on=False)
            end = max(end, bar.high + 0.004 * chart.axes.get_xlim()[1])
        near = NEAR * chart.axes.get_xlim()[1]
        if group.chance is not None and end <= 100 * group.chance <= end + near:
            end = 100 * group.chance
        write(
            chart,
            end + near / 9,
            middle,
            f"{bar.value:.1f}",
            size=chart.letters - 1,
            ink=TEXT,
            va="center_baseline",
        )
    if group.chance is not None:
        bottom = top + BAR * len(group.bars)
        place = [100 * group.chance] * 2
        axes.plot(place, [top - 2, bottom + 2], color=MUTED, linewidth=1.5, linestyle=(0, (2, 2)))
