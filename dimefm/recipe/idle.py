"""Refuse settings that a run would not look at."""

from __future__ import annotations

from collections.abc import Set

from dimefm.errors import RecipeError
from dimefm.recipe.implied import AUGMENTATIONS
from dimefm.recipe.recipe import Recipe
from dimefm.recipe.schema import KEYS


def refuse_idle(recipe: Recipe) -> None:
    """Raise RecipeError for a key that is set where its conditions do not hold."""
    for name, value in recipe.settings().items():
        key = KEYS[name]
        if value == key.default or key.tolerated:
            continue
        for condition in key.conditions:
            if condition.holds(recipe):
                continue
            label = f"{name} = {value!r}" if key.choices else name
            remedy = f", or {condition.remedy}" if condition.remedy else ""
            raise RecipeError(
                f"{label} is for {condition.words} and would do nothing here. Fix: remove"
                f" {name}{remedy}"
            )


def note_on_ignored(recipe: Recipe) -> str:
    """Return a line on settings of crops that the center does not look at, "" without any."""
    if recipe.crops != "center":
        return ""
    implied = AUGMENTATIONS[recipe.augment]
    ignored = []
    for name, value in recipe.settings().items():
        if recipe.is_ignored(name) and value != implied.get(name, KEYS[name].default):
            ignored.append(name)
    if not ignored:
        return ""
    return f"note: crops = 'center' does not look at {', '.join(ignored)}"


def refuse_unneeded(recipe: Recipe, needs: Set[str]) -> None:
    """Raise RecipeError for what a step would show to losses of which none ``needs`` it."""
    for name, value in recipe.settings().items():
        key = KEYS[name]
        if key.for_losses is None or value == key.default or key.for_losses in needs:
            continue
        if name == "mask_words" and recipe.mlm_caption == "contrastive":
            continue  # all losses learn from masked captions
        raise RecipeError(
            f"{name} is for losses that need '{key.for_losses}', and none here does. Fix: remove"
            f" {name}, or add such a loss"
        )
