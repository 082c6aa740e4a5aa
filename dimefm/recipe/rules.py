"""Rules that a key's type and bounds cannot state. Each returns what is wrong, or None."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dimefm.recipe.conditions import starts_from_weights
from dimefm.recipe.schema.run import Machine
from dimefm.recipe.schema.student import Losses, Views

LOGGERS = ("tensorboard", "wandb")


def crop_scale_is_a_share(recipe: Views) -> str | None:
    """A crop's area is at most the image's."""
    low, high = recipe.crop_scale
    if 0 < low <= high <= 1:
        return None
    return f"'crop_scale' is {recipe.crop_scale}; expected 0 < low <= high <= 1"


def crop_ratio_is_a_range(recipe: Views) -> str | None:
    """An aspect ratio is positive."""
    low, high = recipe.crop_ratio
    if 0 < low <= high < math.inf:
        return None
    return f"'crop_ratio' is {recipe.crop_ratio}; expected 0 < low <= high"


def losses_have_weights(recipe: Losses) -> str | None:
    """A loss is a table with a weight."""
    for name, options in recipe.losses.items():
        weight = options.get("weight") if isinstance(options, dict) else None
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            return (
                f"loss '{name}' is {options!r}; expected a table with a weight, e.g."
                " { weight = 1.0 }"
            )
    return None


def loggers_are_known(recipe: Machine) -> str | None:
    """``report_to`` names loggers, with commas between them."""
    for name in recipe.report_to.split(","):
        name = name.strip()
        if name and name not in LOGGERS:
            return (
                f"'report_to' names '{name}'; expected 'tensorboard', 'wandb' or both with a comma"
            )
    return None


def no_steps_need_a_start(recipe: Any) -> str | None:
    """Without a step the student is what it starts from, which has to be more than chance."""
    if recipe.steps != 0 or starts_from_weights(recipe):
        return None
    if recipe.init_projection != "random":
        return None
    return (
        "'steps' is 0; expected a positive number for a student that starts from random weights."
        " Fix: set more steps, init, or init_projection"
    )


RULES: tuple[Callable[[Any], str | None], ...] = (
    crop_scale_is_a_share,
    crop_ratio_is_a_range,
    losses_have_weights,
    loggers_are_known,
    no_steps_need_a_start,
)
