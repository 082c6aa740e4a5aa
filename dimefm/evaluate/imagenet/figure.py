"""Effective robustness as a figure: accuracy on ImageNet-1k and on each of its variants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dimefm.evaluate.imagenet.robustness import MEAN, Robustness, baseline, logits

FIGURE = "robustness.png"
TITLES = {
    "imagenet-v2": "ImageNetV2",
    "imagenet-r": "ImageNet-R",
    "imagenet-a": "ImageNet-A",
    "imagenet-sketch": "ImageNet-Sketch",
    "objectnet": "ObjectNet",
    MEAN: "mean of the five",
}
TICKS = np.array([0.1, 1, 3, 10, 20, 30, 50, 70, 80, 90, 95, 98, 99.9]) / 100
MARGIN = 0.4
"""Space around the points, on the logit scale."""

MOST_COLUMNS = 3
SIDE = 3.3
"""Inches of the side of a panel."""

LEAST_APART = 0.08
"""Least distance of two ticks, as a share of the axis."""

BASELINE_COLOR = "0.55"
MODEL_COLOR = "tab:red"
LONGEST_NAME = 40


def draw(places: Mapping[str, Robustness], model: str, path: Path) -> None:
    """Plot the line of ImageNet-trained models and the model's point into a PNG, a panel for each
    variant; both axes have a logit scale.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(MOST_COLUMNS, len(places))
    rows = -(-len(places) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(SIDE * columns, SIDE * rows + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat[len(places) :]:
        axes.set_visible(False)
    for axes, (name, place) in zip(grid.flat, places.items(), strict=False):
        _draw_panel(axes, name, place)
    short_name = model if len(model) <= LONGEST_NAME else f"...{model[-LONGEST_NAME:]}"
    handles, labels = grid.flat[0].get_legend_handles_labels()
    labels = [short_name if label == "model" else label for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("accuracy on ImageNet-1k, among the same classes (%)")
    figure.supylabel("accuracy on the variant (%)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_panel(axes, name: str, place: Robustness) -> None:
    """Draw one variant: the points of its line, the line, equal accuracy, and the model."""
    line = baseline(name)
    x = logits(np.append(line.x, place.imagenet))
    y = logits(np.append(line.y, place.accuracy))
    across = np.linspace(x.min() - MARGIN, x.max() + MARGIN, 200)
    expected = line.slope * across + line.intercept
    is_covered = (across >= x[:-1].min()) & (across <= x[:-1].max())
    axes.plot(across, across, color="0.8", linestyle=":", label="equal accuracy")
    axes.plot(across, expected, color=BASELINE_COLOR, linestyle="--", linewidth=1)
    axes.plot(
        across[is_covered], expected[is_covered], color=BASELINE_COLOR, label="line fitted to them"
    )
    axes.scatter(
        x[:-1], y[:-1], s=14, color=BASELINE_COLOR, label=f"{len(line.x)} ImageNet-trained models"
    )
    foot = float(logits(place.expected))
    axes.plot([x[-1], x[-1]], [foot, y[-1]], color=MODEL_COLOR, linewidth=1)
    axes.scatter(x[-1:], y[-1:], s=60, color=MODEL_COLOR, marker="*", label="model", zorder=3)
    axes.set_xlim(across[0], across[-1])
    lowest = min(y.min(), foot) - MARGIN
    axes.set_ylim(lowest, y.max() + MARGIN)
    axes.set_title(f"{TITLES[name]}: {signed(place.effective, 1)}", fontsize=10)
    _set_ticks(axes.set_xticks, axes.get_xlim())
    _set_ticks(axes.set_yticks, axes.get_ylim())
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def signed(share: float, digits: int) -> str:
    """Return a share as percentage points with a sign."""
    points = round(100 * share, digits) + 0.0  # no minus before zero
    return f"{points:+.{digits}f}"


def _set_ticks(set_ticks, limits: tuple[float, float]) -> None:
    """Mark round percentages on an axis with a logit scale, as many as have room."""
    low, high = limits
    apart = LEAST_APART * (high - low)
    places: list[float] = []
    labels: list[str] = []
    for tick in TICKS:
        place = float(logits(tick))
        if low <= place <= high and (not places or place - places[-1] >= apart):
            places.append(place)
            labels.append(f"{100 * tick:g}")
    set_ticks(places, labels)
