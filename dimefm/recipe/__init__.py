"""Recipes: one training run, described completely. A TOML file in ``pipelines/``, flags, or both.

Flags override the file, and the file overrides the defaults. The ``[small]`` table of a file holds
overrides that make the same run take seconds on a laptop (``--small``). The resolved recipe is
printed and saved with the run. All keys stand in ``dimefm/recipe/schema/``, each in one place.
"""

from __future__ import annotations

from dimefm.recipe.former import FORMER_NAMES, renamed
from dimefm.recipe.idle import note_on_ignored, refuse_idle, refuse_unneeded
from dimefm.recipe.implied import AUGMENTATIONS
from dimefm.recipe.reading import read
from dimefm.recipe.recipe import Recipe
from dimefm.recipe.resume import changed, changed_records
from dimefm.recipe.schema import KEYS, SECTIONS

__all__ = [
    "AUGMENTATIONS",
    "FORMER_NAMES",
    "KEYS",
    "SECTIONS",
    "Recipe",
    "changed",
    "changed_records",
    "note_on_ignored",
    "read",
    "refuse_idle",
    "refuse_unneeded",
    "renamed",
]
