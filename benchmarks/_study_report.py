"""The study's results for people: a table for each group of cells, and a plot. Made from the
results alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks._study_cells import Cell, Group, Plan
from benchmarks._study_run import results
from dimefm.storage.files import write_text

TABLE, PLOT = "study.md", "study.png"
SHOWN = {"zero-shot": "cifar-10", "retrieval": "text to image R@1"}
"""The score that stands beside the mean, for each way to score."""
MEAN = {"zero-shot": "mean of the sets", "retrieval": "text to image, mean R@1, 5, 10"}
COLOURS = ("#2b5c8a", "#d9622b")  # of cells, and of those that others are compared with


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation (of a sample: over n - 1) of numbers; None of one
    number.
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float], sign: str = "") -> str:
    """Return numbers from 0 to 1 as ``mean ± std`` in percent, ``-`` without any; ``sign`` "+" is
    for differences.
    """
    if not values:
        return "-"
    mean, std = mean_and_std([100 * value for value in values])
    return f"{mean:{sign}.1f}" + ("" if std is None else f" ± {std:.1f}")


def found(plan: Plan) -> dict[str, dict[int, dict]]:
    """Return cell -> seed -> the newest result that was made with the plan's settings, seeds in
    order.
    """
    each: dict[str, dict[int, dict]] = {name: {} for name in plan.study.cells}
    settings = {name: plan.settings(cell) for name, cell in plan.study.cells.items()}
    for result in results(plan.out):
        if settings.get(result["cell"]) == result["settings"]:
            each[result["cell"]][result["seed"]] = result
    return {name: dict(sorted(seeds.items())) for name, seeds in each.items()}


def scores_of(of: dict[int, dict], score: str | None = None) -> dict[int, float]:
    """Return seed -> one score of a cell, of the seeds that have it; without a name its mean."""
    found = {
        seed: {"mean": result["mean"], **result.get("scores", {})} for seed, result in of.items()
    }
    return {
        seed: scores[score or "mean"]
        for seed, scores in found.items()
        if (score or "mean") in scores
    }


def differences(
    of: dict[int, dict], base: dict[int, dict], score: str | None = None
) -> list[float]:
    """Return the differences of a score of two cells, seed by seed, of the seeds that both have."""
    ours, theirs = scores_of(of, score), scores_of(base, score)
    return [found - theirs[seed] for seed, found in ours.items() if seed in theirs]


def report(plan: Plan) -> str:
    """Write ``study.md`` and ``study.png`` into ``plan.out`` and return the table."""
    text = table(plan)
    write_text(plan.out / TABLE, text)
    draw(plan, plan.out / PLOT)
    return text


def table(plan: Plan) -> str:
    """Return a Markdown table for each group, with a line of what it asks."""
    each, lines = found(plan), []
    for group in plan.study.groups:
        lines += [f"### {group.title}", "", group.about, "", *_rows(plan, group, each), ""]
    done = sum(len(seeds) for seeds in each.values())
    lines += [
        f"{done} of {len(plan.study.cells) * len(plan.study.seeds)} runs at scale {plan.scale:g}."
    ]
    return "\n".join(lines) + "\n"


def _rows(plan: Plan, group: Group, each: dict[str, dict[int, dict]]) -> list[str]:
    scores = (f"{MEAN[group.score]}, %", "difference", f"{SHOWN[group.score]}, %", "difference")
    heads = ("", "seeds", *scores, "CPU s", "published")
    rows = [_row(plan.study.cells[name], group, each) for name in group.cells]
    return [f"| {' | '.join(row)} |" for row in (heads, ("---", *["---:"] * 6, "---"), *rows)]


def _row(cell: Cell, group: Group, each: dict[str, dict[int, dict]]) -> tuple[str, ...]:
    seeds, base = each[cell.name], group.against.get(cell.name, group.cells[0])
    scores: list[str] = []
    for score in (None, SHOWN[group.score]):
        scores.append(percent(list(scores_of(seeds, score).values())))
        scores.append(
            "" if cell.name == base else percent(differences(seeds, each[base], score), "+")
        )
    seconds = (
        f"{statistics.median(result['cpu_seconds'] for result in seeds.values()):.0f}"
        if seeds
        else "-"
    )
    what = f"**{cell.what}**" if cell.name in group.bases else cell.what
    return (what, str(len(seeds)), *scores, seconds, cell.published)


def draw(plan: Plan, path: Path) -> None:
    """Plot each group's cells as mean and standard deviation, with a point for each seed, into a
    PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    each, groups = found(plan), plan.study.groups
    heights = [len(group.cells) for group in groups]
    columns = _columns(heights, 2)
    tall = max(sum(heights[number] + 2.5 for number in column) for column in columns)
    figure = plt.figure(figsize=(15, 0.27 * tall + 0.5), layout="constrained")
    for part, column in zip(
        figure.subfigures(1, len(columns), squeeze=False)[0], columns, strict=True
    ):
        ratios = [heights[number] + 1 for number in column]
        panels = part.subplots(len(column), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, number in zip(panels, column, strict=True):
            _panel(axes, plan, groups[number], each)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _columns(heights: Sequence[int], count: int) -> list[list[int]]:
    """Return the numbers of groups in ``count`` columns or fewer of about the same height, in
    order.
    """
    limit, high = math.ceil(sum(heights) / count), 0
    columns: list[list[int]] = [[]]
    for number, height in enumerate(heights):
        if columns[-1] and high + height / 2 > limit and len(columns) < count:
            columns, high = [*columns, []], 0
        columns[-1].append(number)
        high += height
    return columns


def _panel(axes, plan: Plan, group: Group, each: dict[str, dict[int, dict]]) -> None:
    names = [plan.study.cells[name].what for name in group.cells]
    for place, name in enumerate(group.cells):
        values = [100 * result["mean"] for result in each[name].values()]
        if not values:
            continue
        mean, std = mean_and_std(values)
        colour = COLOURS[name in group.bases]
        axes.errorbar(mean, place, xerr=std or 0, fmt="o", color=colour, capsize=3, markersize=5)
        axes.plot(values, [place] * len(values), "|", color=colour, markersize=9, alpha=0.6)
        if place == 0:
            axes.axvline(mean, color=colour, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"{MEAN[group.score]}, %")
    axes.set_title(group.title, fontsize=10, loc="left")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
