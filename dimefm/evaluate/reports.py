"""Scores as text: a table for the terminal, and Markdown."""

from __future__ import annotations

HEADS = ("dataset", "metric", "score", "chance", "images", "classes", "note")


def _cells(score: dict) -> tuple[str, ...]:
    chance = "-" if score["chance"] is None else f"{100 * score['chance']:.1f}"
    unreadable = f"{score['unreadable']} unreadable images left out" if score["unreadable"] else ""
    note = "; ".join(part for part in (score["note"], unreadable) if part)
    numbers = (f"{100 * score['value']:.2f}", chance, f"{score['images']:,}", str(score["classes"]))
    return (score["dataset"], score["metric"], *numbers, note)


def _mean(result: dict) -> str:
    n = len(result["scores"]) - len(result["not_in_mean"])
    if result["is_elevater_average"]:
        return f"ELEVATER average over all {n} sets: {100 * result['mean']:.2f}"
    sets, needed = (
        "set" if n == 1 else "sets",
        ("is by rows" if result["by"] == "tokens" else "needs all 20"),
    )
    by = ", by tokens" if result["by"] == "tokens" else ""
    return (
        f"mean over the {n} {sets} here{by}: {100 * result['mean']:.2f} (not the ELEVATER average,"
        f" which {needed})"
    )


def _absent(result: dict) -> list[str]:
    """Return a line on the datasets outside the mean, one on those that are not here, one per
    dataset that failed, and one on those still to come.
    """
    lines = []
    if result["not_in_mean"]:
        lines.append(f"outside ELEVATER, not in the mean: {', '.join(result['not_in_mean'])}")
    if result["missing"]:
        lines.append(f"not here: {', '.join(result['missing'])}")
    lines += [f"failed: {each['dataset']}: {each['reason']}" for each in result["failed"]]
    return lines + ([f"still to come: {', '.join(result['pending'])}"] if result["pending"] else [])


def terminal(result: dict) -> str:
    """Return the result of ``evaluate.elevater`` as an aligned table."""
    rows = [HEADS, *(_cells(score) for score in result["scores"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    right = {2, 3, 4, 5}
    lines = [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in [*lines, "", _mean(result), *_absent(result)])


def markdown(result: dict) -> str:
    """Return the result of ``evaluate.elevater`` as a Markdown report."""
    weights = result["weights_sha256"][:12]
    lines = [
        f"# Zero-shot scores of `{result['model']}`",
        "",
        (
            f"Weights `{weights}`, image tower {result['image_parameters']:,} parameters, text"
            f" tower {result['text_parameters']:,}. {result['protocol']}."
        ),
        "",
        "| " + " | ".join(HEADS) + " |",
        "|" + "|".join("---:" if i in (2, 3, 4, 5) else "---" for i in range(len(HEADS))) + "|",
        *("| " + " | ".join(_cells(score)) + " |" for score in result["scores"]),
        "",
        _sentence(_mean(result)),
    ]
    for line in _absent(result):
        lines += ["", _sentence(line)]
    lines += [
        "",
        "Made with "
        + ", ".join(f"{name} {version}" for name, version in result["libraries"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _sentence(line: str) -> str:
    return line[0].upper() + line[1:] + "."
