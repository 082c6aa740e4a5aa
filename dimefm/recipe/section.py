"""A section: keys that belong together, checked by pydantic, with errors of one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import ErrorDetails

from dimefm.errors import RecipeError, did_you_mean
from dimefm.recipe.keys import Key, key_of

OUT_OF_BOUNDS = {
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "finite_number",
}


class Section(BaseModel):
    """Keys that belong together; ``title`` is their heading in ``--help`` and docs/recipes.md.

    Raises RecipeError for a key that is unknown or a value that cannot be.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
    title: ClassVar[str] = ""

    @classmethod
    def schema_keys(cls) -> dict[str, Key]:
        """Return the keys of the section by name, in their order."""
        return {name: key_of(name, info) for name, info in cls.model_fields.items()}

    @classmethod
    def prepare(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings as they are to be checked."""
        return dict(settings)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, settings: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        prepared = cls.prepare(settings)
        try:
            section = validate(prepared)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise RecipeError(_one_line(fault, prepared, cls.schema_keys())) from None
        section._refuse_large_numbers()
        section._refuse_impossible_text()
        return section

    def _refuse_large_numbers(self) -> None:
        """Raise RecipeError for a number that nothing could allocate or count."""
        for name, key in self.schema_keys().items():
            value = getattr(self, name)
            if isinstance(value, int | float) and abs(value) > key.most:
                raise RecipeError(f"'{name}' is {value}; expected at most {key.most:,}")

    def _refuse_impossible_text(self) -> None:
        """Raise RecipeError for a text that can be no path and that no file can hold."""
        for name in self.schema_keys():
            value = getattr(self, name)
            texts = value if isinstance(value, tuple) else (value,)
            for text in texts:
                if isinstance(text, str) and not _is_text(text):
                    raise RecipeError(
                        f"'{name}' is {text[:60]!r}; expected text of UTF-8 without NUL"
                    )


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _one_line(fault: ErrorDetails, settings: Mapping[str, Any], keys: Mapping[str, Key]) -> str:
    """Return a fault that pydantic found as ``'KEY' is VALUE; expected WHAT``."""
    name = str(fault["loc"][0])
    if name not in keys:
        return unknown_key(name, keys)
    key, value = keys[name], settings[name]
    if fault["type"] not in OUT_OF_BOUNDS:
        return f"'{name}' is {value!r}; expected {key.describe_type()}"
    if key.value_type is float and isinstance(value, int):
        value = float(value)
    return f"'{name}' is {value!r}; expected {key.describe_bounds()}"


def unknown_key(name: str, known: Mapping[str, Key]) -> str:
    """Return the words for a key that is not among the ``known`` ones."""
    return f"unknown recipe key '{name}': {did_you_mean(name, known)}"
