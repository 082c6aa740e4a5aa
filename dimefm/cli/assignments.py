"""Settings on the command line that are written ``KEY=VALUE``, with values as in TOML."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from dimefm.errors import RecipeError, did_you_mean
from dimefm.storage.small_files import Unreadable, parse_toml


def assignments(
    flag: str, settings: Sequence[str], example: str, known: Collection[str]
) -> dict[str, Any]:
    """Return the keys and values of ``KEY=VALUE`` settings.

    Raises RecipeError that names the ``flag``, with an ``example`` for a setting that is none, and
    with the nearest ``known`` key for an unknown one.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        try:
            values |= parse_toml(setting)
        except Unreadable as error:
            raise RecipeError(
                f"{flag} {setting}: expected KEY=VALUE as in TOML, e.g. {example}, and words in"
                f" quotes ({error}). Fix: write it so"
            ) from error
    for key in values:
        if key not in known:
            raise RecipeError(f"{flag} {key}: unknown key: {did_you_mean(key, known)}")
    return values
