"""Older names of keys and older values, which recipes of before have, by those of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dimefm.errors import RecipeError
from dimefm.recipe.schema import KEYS

FORMER_NAMES: dict[str, str] = {
    key.formerly: name for name, key in KEYS.items() if key.formerly is not None
}
"""Name of today by older name."""


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the names and values of today; raise RecipeError for a key that is set
    by both of its names.
    """
    result: dict[str, Any] = {}
    for given_name, value in settings.items():
        name = FORMER_NAMES.get(given_name, given_name)
        if name in result:
            raise RecipeError(
                f"'{name}' is set twice, also by its older name '{KEYS[name].formerly}'. Fix:"
                f" remove '{KEYS[name].formerly}'"
            )
        if name in KEYS and isinstance(value, str):
            value = KEYS[name].former_values.get(value, value)
        result[name] = value
    return result
