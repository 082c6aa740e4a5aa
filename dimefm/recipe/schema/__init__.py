"""The keys of a recipe: this folder is the only place that a key is known in.

A key states its type, default, bounds, help, and when it matters. From these come reading and
checking, the flags of ``dimefm train`` with their printed defaults, what is written into a run
folder, what may differ when a run is resumed, and docs/recipes.md.
"""

from __future__ import annotations

from dimefm.recipe.keys import Key
from dimefm.recipe.schema.data import Data
from dimefm.recipe.schema.pruning import Pruning
from dimefm.recipe.schema.run import Evaluation, Machine, Optimization
from dimefm.recipe.schema.student import DimeLosses, Losses, Student, Views
from dimefm.recipe.section import Section

SECTIONS: tuple[type[Section], ...] = (
    Data,
    Student,
    Losses,
    DimeLosses,
    Views,
    Pruning,
    Optimization,
    Evaluation,
    Machine,
)
"""All sections, in the order of ``--help``."""

KEYS: dict[str, Key] = {
    name: one for section in SECTIONS for name, one in section.schema_keys().items()
}
"""All keys by name, in the order of ``--help``; also those of :class:`DimeLosses`."""
