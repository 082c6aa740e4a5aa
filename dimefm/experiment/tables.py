"""The raw tables of a pipeline file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from dimefm.errors import RecipeError, did_you_mean


def read_tables(path: Path, small: bool) -> dict[str, dict[str, Any]]:
    """Return the tables of a pipeline file; with ``small``, those of [small] win key by key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as TOML: {error}") from error
    reduced = tables.pop("small", {})
    for name, keys in reduced.items():
        if name not in tables or not isinstance(keys, dict):
            raise RecipeError(f"{path}: unknown table 'small.{name}': {did_you_mean(name, tables)}")
        if small:
            tables[name] = {**tables.get(name, {}), **keys}
    return tables
