"""What may differ between a run and the recipe that it is resumed with."""

from __future__ import annotations

from dimefm.recipe.recipe import Recipe
from dimefm.recipe.schema import KEYS


def changed(recipe: Recipe, saved: Recipe) -> list[str]:
    """Return ``"KEY: a against b"`` for each key that differs and changes what is learned."""
    return [text for name, text in _differences(recipe, saved) if not _may_differ(name)]


def changed_records(recipe: Recipe, saved: Recipe) -> list[str]:
    """Return ``"KEY: a against b"`` for each key that differs and does not change that."""
    return [text for name, text in _differences(recipe, saved) if _may_differ(name)]


def _may_differ(name: str) -> bool:
    return KEYS[name].may_differ_on_resume


def _differences(recipe: Recipe, saved: Recipe) -> list[tuple[str, str]]:
    """Return (name, the values in words) of each key that differs and that a run looks at."""
    differences = []
    for name, value in recipe.settings().items():
        saved_value = getattr(saved, name)
        is_ignored = recipe.is_ignored(name) and saved.is_ignored(name)
        if value != saved_value and not is_ignored:
            differences.append((name, f"{name}: {value!r} against {saved_value!r}"))
    return differences
