"""What a submission holds, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dimefm.errors import DataError
from dimefm.evaluate.benchmark import suite
from dimefm.evaluate.reports import wrapped
from dimefm.evaluate.submission import UNPROVEN, Entry, Size, parameter_efficiency
from dimefm.runtime.printable import one_line
from dimefm.runtime.tables import aligned
from dimefm.runtime.text import first_few

COLUMNS = ("dataset", "metric", "score", "images", "unreadable", "seeds")
SHOWN = 20


def report(entries: Sequence[Entry], others: Sequence[str], size: Size) -> tuple[str, dict]:
    """Return a table with remarks, and the same facts as JSON.

    Raises DataError without an entry: no dataset of the suite has predictions.
    """
    if not entries:
        raise DataError(
            f"no predictions of ELEVATER's datasets, found {first_few(others, SHOWN)}. Fix:"
            " evaluate on datasets of the suite"
        )
    rows: list[tuple[str, ...]] = [COLUMNS]
    for entry in entries:
        cells = (entry.card.name, entry.card.metric, f"{100 * entry.score:.2f}")
        counts = (f"{entry.card.test:,}", f"{entry.filled:,}", str(len(entry.seeds)))
        rows.append((*cells, *counts))
    facts = _facts(entries, others, size)
    lines = aligned(rows, (0, 1))
    for remark in _remarks(entries, others, facts):
        lines += ["", remark]
    return "\n".join(wrapped(line) for line in lines), facts


def _facts(entries: Sequence[Entry], others: Sequence[str], size: Size) -> dict:
    names = [entry.card.name for entry in entries]
    in_suite = [entry for entry in entries if entry.card.name in suite()]
    facts: dict = {
        "task": entries[0].task,
        "datasets": [
            {
                **entry.head(size),
                "metric": entry.card.metric,
                "value": entry.score,
                "unreadable": entry.filled,
                "order": entry.order,
            }
            for entry in entries
        ],
        "missing": [name for name in suite() if name not in names],
        "left_out": list(others),
    }
    if in_suite:
        mean = float(np.mean([entry.score for entry in in_suite]))
        trainable = float(np.mean([entry.trainable for entry in in_suite]))
        facts["mean"] = mean
        facts["num_trainable_params"] = trainable
        facts["parameter_efficiency"] = parameter_efficiency(mean, trainable)
    return facts


def _remarks(entries: Sequence[Entry], others: Sequence[str], facts: dict) -> list[str]:
    """Return a line for the mean, and for each thing that the server or a reader may object to."""
    lines = []
    if "mean" in facts:
        count = len(suite()) - len(facts["missing"])
        lines.append(f"mean over {count} of {len(suite())} datasets: {100 * facts['mean']:.2f}")
        lines.append(
            f"parameter efficiency: {100 * facts['parameter_efficiency']:.2f} with"
            f" {facts['num_trainable_params']:,.0f} trained weights (formula as recalled from the"
            " benchmark's rules)"
        )
    if facts["missing"]:
        names = first_few(facts["missing"], SHOWN)
        lines.append(f"missing, so the server gives no average: {names}")
    unproven = [entry.card.name for entry in entries if entry.order == UNPROVEN]
    if unproven:
        lines.append(
            "the images are in the order of the data on disk, and whether this is the official"
            " order cannot be proved (--index re-orders them by name):"
            f" {first_few(unproven, SHOWN)}"
        )
    filled = [entry for entry in entries if entry.filled]
    if filled:
        total = sum(entry.filled for entry in filled)
        lines.append(f"{total:,} unreadable images have equal probabilities for all classes")
    if others:
        names = first_few([one_line(name) for name in others], SHOWN)
        lines.append(f"left out, not of the suite: {names}")
    return lines
