"""Robustness: accuracy on variants of ImageNet beside that on ImageNet-1k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.evaluate.imagenet.robustness import MEAN, baseline, robustness
from dimefm.evaluate.report import scatter
from dimefm.evaluate.report.collect import Collection, Model
from dimefm.evaluate.report.parts import NONE, Figure, Key, Section, Table
from dimefm.evaluate.report.published import PublishedModel, published
from dimefm.evaluate.report.scatter import Axis, Line, Point
from dimefm.evaluate.report.sections.cost import PUBLISHED, imagenet_of
from dimefm.evaluate.report.words import joined, keys, percent, plural
from dimefm.runs.scores import ZERO_SHOT

VARIANTS = {
    "imagenet-v2": "V2",
    "imagenet-a": "A",
    "imagenet-r": "R",
    "imagenet-sketch": "Sketch",
    "objectnet": "ObjectNet",
}
"""Datasets of the average robustness -> their short names. Source: DIME-FM, table 1."""

OTHER_NAMES = {"imagenetv2": "imagenet-v2"}
"""Names that clip-benchmark has for them."""

EXPECTED = Key("line", "expected of ImageNet-trained models")
CONVENTION = (
    "Above the line a model is more robust than models that were trained on ImageNet alone (Taori"
    " et al. 2020). Published models are scored among the 1000 classes of ImageNet-1k, of which"
    " those that a variant lacks are left out."
)
EFFECTIVE = (
    "Effective robustness: points above the line that ImageNet-trained models follow (Taori et al."
    " 2020). * No model of the line is as weak, or as strong, on ImageNet-1k."
)
STEPS = 40
"""Places that the line is drawn through."""


@dataclass(frozen=True)
class Robust:
    """A model's scores, 0 to 1: on ImageNet-1k, and the mean over the variants."""

    model: Model
    imagenet: float
    mean: float


def section(collection: Collection) -> Section | None:
    """Return the chart and the table of robustness; None without variants of ImageNet."""
    variants = _variants(collection)
    if not variants:
        return None
    tables = [_table(collection, variants)]
    effective = _effective(collection, variants)
    if effective.rows:
        tables.append(effective)
    figures = []
    if imagenet_of(collection) is not None:
        robust = _robust(collection, variants)
        if robust:
            figures.append(_figure(robust, variants))
    text = [
        f"Zero-shot accuracy on {plural(len(variants), 'variant')} of ImageNet:"
        f" {joined([VARIANTS[_folded(name)] for name in variants])}."
    ]
    return Section(name="robustness", title="Robustness", text=text, figures=figures, tables=tables)


def _folded(name: str) -> str:
    folded = name.casefold().replace("_", "-")
    return OTHER_NAMES.get(folded, folded)


def _variants(collection: Collection) -> list[str]:
    """Return the variants of ImageNet in the scores, as they are called there."""
    return [name for name in collection.datasets(ZERO_SHOT) if _folded(name) in VARIANTS]


def _robust(collection: Collection, variants: Sequence[str]) -> list[Robust]:
    """Return the models with scores on ImageNet-1k and all variants."""
    imagenet = str(imagenet_of(collection))
    found = []
    for model in collection.models:
        accuracy = model.value(ZERO_SHOT, imagenet)
        mean = _mean(model, variants)
        if accuracy is not None and mean is not None:
            found.append(Robust(model, accuracy, mean))
    return found


def _mean(model: Model, variants: Sequence[str]) -> float | None:
    values = [model.value(ZERO_SHOT, variant) for variant in variants]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(variants) else None


def _figure(robust: Sequence[Robust], variants: Sequence[str]) -> Figure:
    others: list[PublishedModel] = []
    if len(variants) == len(VARIANTS):
        others = [model for model in published() if model.robustness is not None]
    points = []
    for one in robust:
        points.append(Point(100 * one.imagenet, 100 * one.mean, one.model.name, one.model.number))
    for other in others:
        points.append(Point(100 * other.imagenet, 100 * (other.robustness or 0), other.name))
    title = "Accuracy on the variants against accuracy on ImageNet-1k"
    parts = [
        f"{one.model.name} {percent(one.mean, 1)} at {percent(one.imagenet, 1)}" for one in robust
    ]
    description = f"Mean accuracy on the variants over ImageNet-1k, percent: {'; '.join(parts)}."
    line = None
    if len(variants) == len(VARIANTS):
        line = _line([point.x for point in points])
    drawn = scatter.drawings(
        points,
        Axis("ImageNet-1k zero-shot, %", lambda value: f"{value:.3g}", is_log=False),
        f"mean of {plural(len(variants), 'variant')}, %",
        "robustness",
        title,
        description,
        line,
    )
    rows = []
    for one in robust:
        rows.append([one.model.name, percent(one.imagenet), percent(one.mean), "these scores"])
    for other in others:
        cells = [other.name, percent(other.imagenet), percent(other.robustness), other.source]
        rows.append(cells)
    legend = keys([one.model for one in robust])
    if others:
        legend.append(PUBLISHED)
    if line is not None:
        legend.append(EXPECTED)
    head = ("model", "ImageNet-1k", "mean of the variants", "source")
    return Figure(
        name="robustness",
        title=title,
        description=description,
        wide=drawn["wide"],
        narrow=drawn["narrow"],
        keys=legend,
        table=Table("Robustness and accuracy", head, rows, left=(0, 3)),
        note=CONVENTION if line is not None else "",
    )


def _line(x: Sequence[float]) -> Line:
    """Return the line that ImageNet-trained models follow, between accuracies in percent."""
    places = np.linspace(min(x), max(x), STEPS)
    expected = 100 * baseline(MEAN).at(places / 100)
    return Line(places.tolist(), expected.tolist())


def _table(collection: Collection, variants: Sequence[str]) -> Table:
    """Return a row for each model: all scores, their mean, and its effective robustness."""
    imagenet = imagenet_of(collection)
    head = ["model", "ImageNet-1k"]
    head += [VARIANTS[_folded(variant)] for variant in variants]
    head += ["mean of the variants", "effective robustness"]
    rows = []
    for model in collection.models:
        accuracy = None if imagenet is None else model.value(ZERO_SHOT, imagenet)
        mean = _mean(model, variants)
        row = [model.name, percent(accuracy)]
        row += [percent(model.value(ZERO_SHOT, variant)) for variant in variants]
        row += [percent(mean), NONE]
        if accuracy is not None and mean is not None and len(variants) == len(VARIANTS):
            place = robustness(MEAN, accuracy, mean)
            mark = " *" if place.is_extrapolated else ""
            row[-1] = f"{100 * place.effective:+.2f}{mark}"
        rows.append(row)
    return Table("Robustness in percent", head, rows, note=EFFECTIVE)


def _effective(collection: Collection, variants: Sequence[str]) -> Table:
    """Return the effective robustness that scores state: a row for each model and variant."""
    rows = []
    for model in collection.models:
        for variant in variants:
            result = model.results.get((ZERO_SHOT, variant))
            place = None if result is None else result.details.get("robustness")
            if result is None or not isinstance(place, dict):
                continue
            effective = place.get("effective_robustness")
            if isinstance(effective, int | float):
                mark = " *" if place.get("extrapolated") else ""
                rows.append(
                    [
                        model.name,
                        VARIANTS[_folded(variant)],
                        _share(place.get("imagenet")),
                        f"{_share(place.get('expected'))}{mark}",
                        percent(result.value),
                        f"{100 * effective:+.2f}",
                    ]
                )
    head = ("model", "variant", "ImageNet-1k", "expected", "score", "effective robustness")
    return Table(
        caption="Effective robustness on each variant, in points",
        head=head,
        rows=rows,
        left=(0, 1),
        note="ImageNet-1k is the accuracy on its images of the variant's classes.",
    )


def _share(value: object) -> str:
    return percent(float(value)) if isinstance(value, int | float) else NONE
