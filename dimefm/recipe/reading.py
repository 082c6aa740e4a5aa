"""Read a recipe: a TOML file, settings that win over it, or both."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimefm.errors import RecipeError
from dimefm.recipe.implied import with_layer
from dimefm.recipe.recipe import Recipe


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file: its keys, and those that ``--small`` replaces."""

    path: Path
    keys: Mapping[str, Any]
    small: Mapping[str, Any]


def read(path: str | Path | None = None, small: bool = False, **overrides: object) -> Recipe:
    """Return the recipe of a file (None: all defaults) with the overrides that are not None.

    With ``small`` the file's ``[small]`` table wins over its other keys. Overrides win over both.
    Raises RecipeError for an unknown key (with the nearest known one), a wrong type, or a value
    that cannot be; it names the file where the file is to blame.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        settings = _settings(read_file(Path(path)), small)
    elif small:
        raise RecipeError(
            "--small asks for a [small] table, which only a recipe file has; name one with --recipe"
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    return Recipe(**with_layer(settings, given))


def read_file(path: Path) -> RecipeFile:
    """Return the tables of a recipe file, unchecked; raise RecipeError when it is no TOML."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as TOML: {error}") from error
    small = table.pop("small", {})
    if not isinstance(small, dict):
        raise RecipeError(
            f"{path}: 'small' is {small!r}; expected a table, [small], of keys that --small"
            " replaces"
        )
    return RecipeFile(path, table, small)


def _settings(file: RecipeFile, small: bool) -> dict[str, Any]:
    """Return the settings of a file; raise RecipeError for a fault in it, also in [small]."""
    if small and not file.small:
        raise RecipeError(
            f"--small asks for a [small] table, which {file.path} does not have. Fix: add it, or"
            " remove --small"
        )
    whole = with_layer({}, file.keys)
    reduced = with_layer(whole, file.small)
    for settings in (whole, reduced):
        _check(settings, file.path)
    return reduced if small else whole


def _check(settings: Mapping[str, Any], path: Path) -> None:
    try:
        Recipe(**settings)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
