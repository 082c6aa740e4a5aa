"""The quickstart's result for people: a table, a Markdown page and a plot."""

from __future__ import annotations

import json
from pathlib import Path

COLUMNS = ("teacher", "student", "untrained")


def _rows(summary: dict) -> list[tuple[str, ...]]:
    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    rows: list[tuple[str, ...]] = [("", "teacher", "student", "untrained student", "chance")]
    for name, scores in summary["datasets"].items():
        cells = (percent(scores[column]) for column in (*COLUMNS, "chance"))
        rows.append((f"zero-shot {name}, {scores['images']:,} images", *cells))
    means = (percent(summary[f"{column}_accuracy"]) for column in COLUMNS)
    rows.append(("mean", *means, percent(summary["chance"])))
    counts = (f"{summary[f'{name}_params']:,}" for name in ("teacher", "student", "student"))
    rows.append(("image tower parameters", *counts, ""))
    rates = (f"{summary[f'{name}_rows_per_s']:,}" for name in ("teacher", "student"))
    rows.append(("images encoded a second", *rates, "", ""))
    return rows


def _verdict(summary: dict) -> str:
    kept = summary["student_accuracy"] / summary["teacher_accuracy"]
    smaller = summary["teacher_params"] / summary["student_params"]
    return (
        f"The student's image tower is {smaller:.0f} times smaller and keeps {100 * kept:.0f} % of"
        " the teacher's accuracy. Its sentences are encoded by the teacher's text tower"
        f" ({summary['text_params']:,} parameters)."
    )


def table(summary: dict) -> str:
    """Return the result as an aligned table with one sentence below."""
    rows = _rows(summary)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += ["", _verdict(summary), f"{summary['seconds']:.0f} seconds in all."]
    return "\n".join(line.rstrip() for line in lines)


def markdown(summary: dict) -> str:
    """Return the result as a Markdown page that shows ``report.png``."""
    head, *rows = ["| " + " | ".join(row) + " |" for row in _rows(summary)]
    lines = [
        "# dimefm quickstart",
        "",
        head,
        "|---|---:|---:|---:|---:|",
        *rows,
        "",
        _verdict(summary),
    ]
    lines += [
        "",
        "![Accuracy and training curve](report.png)",
        "",
        f"{summary['seconds']:.0f} seconds in all.",
    ]
    return "\n".join(lines) + "\n"


def draw(summary: dict, run: Path, path: Path) -> None:
    """Plot accuracies by dataset and the student's loss curve into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    bars = ("chance", "untrained", "student", "teacher")
    colours = ("#c8c8c8", "#9aa5b1", "#d9622b", "#2b5c8a")
    for i, (bar, colour) in enumerate(zip(bars, colours, strict=True)):
        values = [100 * scores[bar] for scores in summary["datasets"].values()]
        places = [place + 0.2 * (i - 1.5) for place in range(len(values))]
        drawn = left.bar(places, values, 0.18, color=colour, label=bar)
        left.bar_label(drawn, fmt="%.0f", fontsize=8, padding=1)
    left.set(ylabel="zero-shot accuracy, %", ylim=(0, 112), xticks=range(len(summary["datasets"])))
    left.set_xticklabels(summary["datasets"])
    left.legend(ncols=4, fontsize=8, frameon=False, loc="upper center")
    log = [
        json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for name, label, colour in (("dime.vl", "VL", "#2b5c8a"), ("dime.pvl", "P-VL", "#d9622b")):
        right.plot(
            [line["step"] for line in log],
            [line[name] for line in log],
            color=colour,
            label=label,
            linewidth=1.4,
        )
    right.set(xlabel="step", ylabel="loss of the student", yscale="log")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
