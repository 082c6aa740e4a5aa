"""The raw tables of a pipeline file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimefm.recipe.files import read_files
from dimefm.recipe.implied import with_layer


def read_tables(path: Path, small: bool) -> dict[str, dict[str, Any]]:
    """Return the tables of a pipeline file and of the files that it is based on, key by key; with
    ``small``, those of [small] win.
    """
    files = read_files(path)
    layers = [file.stages for file in files]
    if small:
        layers += [file.small for file in files]
    tables: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for name, keys in layer.items():
            set_keys(tables, name, keys)
    return tables


def set_keys(tables: dict[str, dict[str, Any]], name: str, keys: Mapping[str, Any]) -> None:
    """Set keys of one table, and what they imply; they win over those that the table has."""
    below = tables.get(name, {})
    tables[name] = with_layer(below, keys) if name == "train" else {**below, **keys}
