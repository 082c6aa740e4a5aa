"""A recipe: one training run, described completely."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from dimefm.errors import RecipeError
from dimefm.recipe.implied import AUGMENTATIONS, with_layer, with_losses
from dimefm.recipe.rules import RULES
from dimefm.recipe.schema import KEYS
from dimefm.recipe.schema.data import Data
from dimefm.recipe.schema.pruning import Pruning
from dimefm.recipe.schema.run import Evaluation, Machine, Optimization
from dimefm.recipe.schema.student import Losses, Student, Views
from dimefm.recipe.section import unknown_key


class Recipe(Machine, Evaluation, Optimization, Pruning, Views, Losses, Student, Data):
    """Every setting of a run. Paths are as the user gave them; docs/recipes.md lists the keys.

    ``Recipe(**settings)`` takes what a file and the command line take, and means the same: also
    DIME-FM's options, e.g. ``use_pvl_loss=True``, which set ``losses``. Raises RecipeError for an
    unknown key, with the nearest known one, a wrong type, or a value that cannot be.
    """

    @classmethod
    def prepare(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings that the given ones stand for."""
        whole = with_layer({}, settings)
        for name in whole:
            if name not in KEYS:
                raise RecipeError(unknown_key(name, KEYS))
        return with_losses(whole)

    @model_validator(mode="after")
    def _keep_the_rules(self) -> Self:
        for rule in RULES:
            fault = rule(self)
            if fault is not None:
                raise RecipeError(fault)
        return self

    @property
    def text_student(self) -> str:
        """Name of the text tower to train, "" when none is trained alone."""
        if not self.text.startswith("student:"):
            return ""
        return self.text.removeprefix("student:")

    def settings(self) -> dict[str, Any]:
        """Return the value of every key, in the order of the schema."""
        return {name: getattr(self, name) for name in KEYS if name in type(self).model_fields}

    def replace(self, **changes: object) -> Recipe:
        """Return the recipe with other settings, as if a command line gave them."""
        return Recipe(**with_layer(self.settings(), changes))

    def is_idle(self, name: str) -> bool:
        """Tell whether such a run does not look at a key."""
        kind = KEYS[name].applies_to
        return kind is not None and not kind.holds(self)

    def is_ignored(self, name: str) -> bool:
        """Tell whether such a run does not look at a key that may be set in any run."""
        condition = KEYS[name].looked_at
        return self.is_idle(name) or (condition is not None and not condition.holds(self))

    def to_toml(self) -> str:
        """Return the recipe as TOML that :func:`dimefm.recipe.read` accepts.

        Unset keys are left out, and those that the run does not look at, unless they were set.
        """
        lines = []
        for name, value in self.settings().items():
            implied = AUGMENTATIONS[self.augment].get(name, KEYS[name].default)
            is_unseen = value == implied and self.is_ignored(name)
            if name == "losses" or value in (None, ()) or is_unseen:
                continue
            lines.append(f"{name} = {_toml(value)}")
        lines += ["", "[losses]"]
        for name, options in self.losses.items():
            stated = {option: value for option, value in options.items() if value is not None}
            pairs = [f"{option} = {_toml(value)}" for option, value in stated.items()]
            lines.append(f'"{name}" = {{ {", ".join(pairs)} }}')
        return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
