"""Read a recipe: a TOML file, settings that win over it, or both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimefm.errors import RecipeError
from dimefm.recipe.files import RecipeFile, read_files
from dimefm.recipe.implied import with_layer
from dimefm.recipe.recipe import Recipe


def read(path: str | Path | None = None, small: bool = False, **overrides: object) -> Recipe:
    """Return the recipe of a file (None: all defaults) with the overrides that are not None.

    A file may be based on another, whose keys it replaces. With ``small`` the files' ``[small]``
    tables win over their other keys. Overrides win over both. Raises RecipeError for an unknown key
    (with the nearest known one), a wrong type, or a value that cannot be; it names the file where
    the file is to blame.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        settings = _settings_of(Path(path), small)
    elif small:
        raise RecipeError(
            "--small asks for a [small] table, which only a recipe file has. Fix: name one with"
            " --recipe"
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    return Recipe(**with_layer(settings, given))


def _settings_of(path: Path, small: bool) -> dict[str, Any]:
    """Return the settings of a file and its bases; raise RecipeError for a fault in any of them."""
    files = read_files(path)
    if not any("train" in file.stages for file in files):
        raise RecipeError(f"{path}: has no table [train]. Fix: add it")
    if small and not any(file.small.get("train") for file in files):
        raise RecipeError(
            f"--small asks for a [small] table, which {path} does not have. Fix: add it, or remove"
            " --small"
        )
    whole: dict[str, Any] = {}
    for file in files:
        whole = _with_keys(whole, file.stages.get("train", {}), file)
    reduced = whole
    for file in files:
        reduced = _with_keys(reduced, file.small.get("train", {}), file)
    return reduced if small else whole


def _with_keys(below: dict[str, Any], keys: Mapping[str, Any], file: RecipeFile) -> dict[str, Any]:
    """Return settings with the keys of a file; raise RecipeError, naming the file, for a fault."""
    try:
        settings = with_layer(below, keys)
        Recipe(**settings)
    except RecipeError as error:
        raise RecipeError(f"{file.path}: {error}") from error
    return settings
