"""What a key of a recipe states about itself, and the types that keys have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

from dimefm.recipe.conditions import Condition


def _listed(value: Any) -> Any:
    """Return a list, as TOML has it, as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _one_or_more(value: Any) -> Any:
    """Return a string as a tuple of one."""
    return (value,) if isinstance(value, str) else _listed(value)


def _names(value: Any) -> Any:
    """Return names that stand in one string, with commas between them, as a tuple."""
    if not isinstance(value, str):
        return _listed(value)
    names = [name.strip() for name in value.split(",")]
    return tuple(name for name in names if name)


def _numbers(value: Any) -> Any:
    """Return numbers that stand in one string, with commas between them, as a tuple."""
    if not isinstance(value, str):
        return _listed(value)
    numbers: list[int | str] = []
    for part in _names(value):
        is_number = part.isascii() and part.isdecimal() and len(part) <= MOST_DIGITS
        numbers.append(int(part) if is_number else part)
    return tuple(numbers)


Strings = Annotated[tuple[str, ...], BeforeValidator(_listed)]
OneOrMore = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Counts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_numbers)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_numbers)]
Shares = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_listed)]
Range = Annotated[tuple[float, float], BeforeValidator(_listed)]


MOST_DIGITS = 9  # of a number in a list
MOST = 10**12  # of any number, where a key does not state less


@dataclass(frozen=True)
class Key:
    """A key of a recipe: all that reading, ``--help`` and docs/recipes.md know of it.

    * ``help`` is what ``--help`` prints; docs/recipes.md adds ``more``.
    * ``unset`` says what the default stands for where its value does not, e.g. where it is None.
    * ``flag`` is False for a key without a flag, or the flag in click's own notation. ``folder``:
      its value is no file. ``commas``: it takes several values at once, with commas between them.
    * ``expected`` replaces the words for the possible values in an error.
    * ``applies_to`` is the kind of run that looks at the key; it is left out of the resolved recipe
      of another run. ``applies_when`` are further conditions. A key that is set where one of these
      does not hold is refused, unless it is ``tolerated``.
    * ``looked_at`` is when a run looks at a key that may be set in any run. Where it does not hold,
      the key is neither saved nor compared.
    * ``for_losses`` is what a loss has to need for the key to matter.
    * ``most`` is the largest number that a value may have, in addition to its bounds.
    * ``may_differ_on_resume``: it does not change what the student learns.
    * ``formerly`` is an older name, and ``former_values`` are older values with those of today;
      both are still read.
    """

    help: str
    more: str = ""
    metavar: str | None = None
    unset: str | None = None
    flag: bool | str = True
    folder: bool = False
    commas: bool = False
    expected: str | None = None
    applies_to: Condition | None = None
    applies_when: Sequence[Condition] = ()
    tolerated: bool = False
    looked_at: Condition | None = None
    for_losses: str | None = None
    most: float = MOST
    may_differ_on_resume: bool = False
    formerly: str | None = None
    former_values: Mapping[str, str] = field(default_factory=dict)

    # The field's own.
    name: str = ""
    type: Any = None
    default: Any = None
    bounds: Mapping[str, float] = field(default_factory=dict)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that the key may have, () when there is no such list."""
        kind = self.value_type
        return get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def value_type(self) -> type:
        """The Python type of a value, or of a part of it where there may be several."""
        parts = get_args(self.type)
        if NoneType in parts:
            return next(part for part in parts if part is not NoneType)
        if get_origin(self.type) is not tuple:
            return self.type
        bounded = get_origin(parts[0]) is Annotated
        return get_args(parts[0])[0] if bounded else parts[0]

    @property
    def many(self) -> bool:
        """Whether the flag takes several values."""
        return get_origin(self.type) is tuple and not self.commas

    @property
    def conditions(self) -> list[Condition]:
        """All conditions under which the key may be set."""
        kind = [] if self.applies_to is None else [self.applies_to]
        return [*kind, *self.applies_when]

    def describe_type(self) -> str:
        """Return what values the key has, in words."""
        if self.expected is not None:
            return self.expected
        if self.choices:
            return f"one of {', '.join(map(repr, self.choices))}"
        return self.type.__name__ if isinstance(self.type, type) else str(self.type)

    def describe_bounds(self) -> str:
        """Return the bounds of a number, in words."""
        if self.expected is not None:
            return self.expected
        if self.bounds == {"gt": 0}:
            return "a positive number"
        if self.bounds == {"ge": 0}:
            return "a number of at least 0"
        if not self.bounds:
            return "finite numbers"
        signs = {"gt": "{bound} < ", "ge": "{bound} <= ", "lt": " < {bound}", "le": " <= {bound}"}
        parts = {name: signs[name].format(bound=bound) for name, bound in self.bounds.items()}
        low = parts.get("gt", "") + parts.get("ge", "")
        high = parts.get("lt", "") + parts.get("le", "")
        return low + self.name + high

    def describe_default(self) -> str | None:
        """Return the default as people read it, None when there is nothing to say."""
        if self.unset is not None:
            return self.unset
        nothing = self.default is None or self.default is False or self.default in ((), "")
        if nothing:
            return None
        return describe(self.default)


def key(
    default: Any,
    help: str,
    *,
    gt: int | None = None,
    ge: int | None = None,
    lt: int | None = None,
    le: int | None = None,
    pattern: str | None = None,
    **statements: Any,
) -> Any:
    """Return a pydantic field that carries a :class:`Key` of the ``statements``.

    Bounds are ``gt`` (greater than), ``ge`` (at least), ``lt`` (less than) and ``le`` (at most).
    """
    given = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    extra: dict = {"key": Key(help, default=default, bounds=bounds, **statements)}
    return Field(
        default,
        description=help,
        gt=gt,
        ge=ge,
        lt=lt,
        le=le,
        pattern=pattern,
        json_schema_extra=extra,
    )


def key_of(name: str, info: FieldInfo) -> Key:
    """Return the key that a pydantic field made by :func:`key` carries."""
    extra: Any = info.json_schema_extra
    return dataclasses.replace(extra["key"], name=name, type=info.annotation)


def describe(value: object) -> str:
    """Return a value as people write it: a number without zeros that say nothing."""
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, tuple):
        return "[" + ", ".join(describe(part) for part in value) + "]"
    return str(value)
