"""What may differ between a run and the recipe that it is resumed with."""

from __future__ import annotations

from dimefm.recipe.recipe import Recipe
from dimefm.recipe.schema import KEYS


def changed(recipe: Recipe, saved: Recipe) -> list[str]:
    """Return ``"KEY: a against b"`` for each key that differs and changes what is learned."""
    differences = []
    for name, value in recipe.settings().items():
        saved_value = getattr(saved, name)
        if value == saved_value or KEYS[name].may_differ_on_resume:
            continue
        differences.append(f"{name}: {value!r} against {saved_value!r}")
    return differences
