"""Scores of ImageNet and its variants as text, with their effective robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dimefm.evaluate import score_tables
from dimefm.evaluate.imagenet.figure import FIGURE, signed
from dimefm.evaluate.imagenet.robustness import (
    IMAGENET,
    MEAN,
    VARIANTS,
    Robustness,
    baseline,
    robustness,
)
from dimefm.evaluate.reports import wrapped
from dimefm.runs.scores import Result, Scores
from dimefm.runtime.tables import aligned, markdown_table

TITLE = "Scores on ImageNet and its variants"
COLUMNS = ("variant", "ImageNet-1k", "expected", "score", "effective robustness")
EXPLANATION = (
    "Effective robustness: points above the line that ImageNet-trained models follow (Taori et al."
    " 2020). ImageNet-1k is the accuracy on its validation images of the variant's classes."
)
NO_REFERENCE = "No effective robustness: it needs ImageNet-1k next to its variants."


def places_of(results: Sequence[Result]) -> dict[str, Robustness]:
    """Return where a model stands on each variant, and on the mean if all five are scored.

    Empty without ImageNet-1k.
    """
    result_of = {result.dataset: result for result in results}
    places: dict[str, Robustness] = {}
    for name in VARIANTS:
        if name in result_of and "robustness" in result_of[name].details:
            details = result_of[name].details["robustness"]
            places[name] = robustness(name, details["imagenet"], result_of[name].value)
    if len(places) == len(VARIANTS):
        mean = float(np.mean([place.accuracy for place in places.values()]))
        places[MEAN] = robustness(MEAN, result_of[IMAGENET].value, mean)
    return places


def terminal(scores: Scores, places: Mapping[str, Robustness]) -> str:
    """Return the scores as a table of a terminal, and below it the robustness."""
    lines = [score_tables.terminal(scores), "", wrapped(scores.protocol), ""]
    if places:
        lines += aligned(_rows(places))
    for remark in _remarks(scores, places):
        lines += ["", wrapped(remark)]
    return "\n".join(lines)


def markdown(scores: Scores, places: Mapping[str, Robustness]) -> str:
    """Return the scores and the robustness as a Markdown page."""
    text = score_tables.markdown(scores, TITLE)
    lines = ["## Effective robustness", ""]
    if places:
        lines += [*markdown_table(_rows(places)), ""]
    for remark in _remarks(scores, places):
        lines += [remark, ""]
    if places:
        lines += [f"![Accuracy on ImageNet-1k and on its variants]({FIGURE})", ""]
    return f"{text}\n" + "\n".join(lines)


def _rows(places: Mapping[str, Robustness]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [COLUMNS]
    for name, place in places.items():
        mark = " *" if place.is_extrapolated else ""
        rows.append(
            (
                name,
                f"{100 * place.imagenet:.2f}",
                f"{100 * place.expected:.2f}{mark}",
                f"{100 * place.accuracy:.2f}",
                signed(place.effective, 2),
            )
        )
    return rows


def _remarks(scores: Scores, places: Mapping[str, Robustness]) -> list[str]:
    """Return what there is to know of the robustness, line by line."""
    if not places:
        has_variant = any(result.dataset in VARIANTS for result in scores.results)
        return [NO_REFERENCE] if has_variant else []
    remarks = [EXPLANATION]
    if any(place.is_extrapolated for place in places.values()):
        line = baseline(MEAN)
        lowest = f"{100 * line.x.min():.0f}"
        highest = f"{100 * line.x.max():.0f}"
        remarks.append(
            f"* extrapolated: the {len(line.x)} models of the lines reach {lowest} to {highest} on"
            " the 1000 classes of ImageNet-1k."
        )
    return remarks
