"""Published models that a student stands beside, from ``published.toml``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from dimefm.storage.small_files import read_toml

FILE = Path(__file__).parent / "published.toml"
MILLION = 1_000_000


@dataclass(frozen=True)
class PublishedModel:
    """A published model: parameters are numbers of weights, scores are 0 to 1.

    ``imagenet`` is the zero-shot accuracy on ImageNet-1k. ``robustness`` is the mean over
    ImageNet-V2, -A, -R, -Sketch and ObjectNet, None where not all are published.
    """

    name: str
    family: str
    image_parameters: float
    parameters: float
    imagenet: float
    robustness: float | None
    source: str


@functools.cache
def published() -> tuple[PublishedModel, ...]:
    """Return the published models, those with the smallest image tower first."""
    content = read_toml(FILE)
    models = []
    for entry in content["models"]:
        variants = entry.get("variants")
        robustness = None
        if variants:
            robustness = sum(variants) / len(variants) / 100
        model = PublishedModel(
            name=entry["name"],
            family=entry["family"],
            image_parameters=entry["image"] * MILLION,
            parameters=entry["total"] * MILLION,
            imagenet=entry["imagenet"] / 100,
            robustness=robustness,
            source=content["sources"][entry["source"]],
        )
        models.append(model)
    models.sort(key=lambda model: (model.image_parameters, model.name))
    return tuple(models)
