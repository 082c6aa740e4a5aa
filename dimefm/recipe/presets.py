"""The recipes that come with dimefm: the files of ``pipelines/``, by name.

A wheel has them in its package ``dimefm.pipelines``; a checkout has them at its top level.
"""

from __future__ import annotations

import os
from pathlib import Path

from dimefm.errors import RecipeError, did_you_mean

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "pipelines", PACKAGE.parent / "pipelines")


def presets() -> dict[str, Path]:
    """Return name -> file of the recipes, by name."""
    for folder in FOLDERS:
        files = sorted(folder.glob("*.toml"))
        if files:
            return {path.stem: path for path in files}
    return {}


def title(path: Path) -> str:
    """Return what a recipe says about itself in its first line."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def path_of(recipe: str | os.PathLike) -> Path:
    """Return the file that ``recipe`` names: a path, or the name of a recipe of dimefm.

    Raises RecipeError when there is none.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    known = presets()
    name = path.name.removesuffix(".toml")
    is_name = path.parent == Path() and name in known
    if is_name and not path.exists():
        return known[name]
    raise RecipeError(
        f"{recipe}: no such recipe file; of dimefm's own, {did_you_mean(name, known)}"
    )
