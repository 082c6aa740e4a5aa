"""The quickstart's summary as a table, a Markdown page and a plot."""

from __future__ import annotations

import json
from pathlib import Path

from dimefm.runs.folder import LOG
from dimefm.runtime.tables import aligned, markdown_table

MODELS = ("teacher", "student", "untrained")
LEAST_ABOVE_CHANCE = 0.05
"""Accuracies nearer to chance than this are not compared."""

HEAD = ("", "teacher", "student", "untrained student", "chance")

BAR_COLORS = {
    "chance": "#c8c8c8",
    "untrained": "#9aa5b1",
    "student": "#d9622b",
    "teacher": "#2b5c8a",
}
"""Color of each bar of the plot, from left to right."""

BAR_WIDTH = 0.18
BAR_DISTANCE = 0.2


def table(summary: dict) -> str:
    """Return the summary as an aligned table with two sentences below it."""
    lines = aligned(_rows(summary))
    lines += ["", _verdict(summary), _duration(summary)]
    return "\n".join(lines)


def markdown(summary: dict) -> str:
    """Return the summary as a Markdown page that shows ``report.png``."""
    lines = [
        "# dimefm quickstart",
        "",
        *markdown_table(_rows(summary)),
        "",
        _verdict(summary),
        "",
        "![Accuracy and training curve](report.png)",
        "",
        _duration(summary),
    ]
    return "\n".join(lines) + "\n"


def draw(summary: dict, run: Path, path: Path) -> None:
    """Plot the accuracies and the student's loss curve into a PNG; ``run`` is the student's run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    _draw_accuracies(left, summary["datasets"])
    _draw_losses(right, run / LOG)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _rows(summary: dict) -> list[tuple[str, ...]]:
    """Return the table as text, its head first."""
    rows: list[tuple[str, ...]] = [HEAD]
    for name, scores in summary["datasets"].items():
        title = f"zero-shot {name}, {scores['images']:,} images"
        accuracies = [_percent(scores[model]) for model in MODELS]
        rows.append((title, *accuracies, _percent(scores["chance"])))
    means = [_percent(summary[f"{model}_accuracy"]) for model in MODELS]
    rows.append(("mean", *means, _percent(summary["chance"])))
    teacher_size = f"{summary['teacher_params']:,}"
    student_size = f"{summary['student_params']:,}"
    rows.append(("image tower parameters", teacher_size, student_size, student_size, ""))
    teacher_rate = f"{summary['teacher_rows_per_s']:,}"
    student_rate = f"{summary['student_rows_per_s']:,}"
    rows.append(("images encoded a second", teacher_rate, student_rate, "", ""))
    return rows


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _verdict(summary: dict) -> str:
    """Return how much smaller the student is, and how much accuracy it keeps."""
    smaller = summary["teacher_params"] / summary["student_params"]
    above_chance = {}
    for model in ("teacher", "student"):
        above_chance[model] = summary[f"{model}_accuracy"] - summary["chance"]
    if min(above_chance.values()) < LEAST_ABOVE_CHANCE:
        return (
            f"The student's image tower is {smaller:.0f} times smaller. This run was too short for"
            " its scores to mean anything: a model is near chance. Run it with --scale 1."
        )
    kept = summary["student_accuracy"] / summary["teacher_accuracy"]
    return (
        f"The student's image tower is {smaller:.0f} times smaller and keeps {100 * kept:.0f} % of"
        " the teacher's accuracy. Its sentences are encoded by the teacher's text tower"
        f" ({summary['text_params']:,} parameters)."
    )


def _duration(summary: dict) -> str:
    return f"{summary['seconds']:.0f} seconds in all."


def _draw_accuracies(axes, datasets: dict[str, dict]) -> None:
    """Draw a group of bars for each dataset."""
    for number, (name, color) in enumerate(BAR_COLORS.items()):
        percents = [100 * scores[name] for scores in datasets.values()]
        offset = BAR_DISTANCE * (number - 1.5)
        places = [place + offset for place in range(len(percents))]
        bars = axes.bar(places, percents, BAR_WIDTH, color=color, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    axes.set(ylabel="zero-shot accuracy, %", ylim=(0, 112), xticks=range(len(datasets)))
    axes.set_xticklabels(datasets)
    axes.legend(ncols=4, fontsize=8, frameon=False, loc="upper center")


def _draw_losses(axes, log: Path) -> None:
    """Draw the two losses of the student over the steps."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines]
    for name, label, color in (("dime.vl", "VL", "#2b5c8a"), ("dime.pvl", "P-VL", "#d9622b")):
        losses = [line[name] for line in lines]
        axes.plot(steps, losses, color=color, label=label, linewidth=1.4)
    axes.set(xlabel="step", ylabel="loss of the student", yscale="log")
    axes.legend(frameon=False, fontsize=8)
