"""Options that the schema of recipes describes: all of ``train``, and those that others share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from dimefm.cli._open_clip_habits import PRECISIONS
from dimefm.recipe import KEYS, SECTIONS
from dimefm.recipe.keys import Key
from dimefm.recipe.schema.evaluation import Eval
from dimefm.recipe.section import Section
from dimefm.runtime import console

SOURCES = ("dataroot", "input_format")
COLUMNS = ("image_column", "text_column", "key_column", "separator")
SELECTION = ("rows", "split", "limit")

Decorator = Callable[[Callable], Callable]


class Precision(click.Choice):
    """A precision, also by the name that open_clip has for it."""

    def convert(self, value, param, ctx):
        meant = PRECISIONS.get(value)
        if meant is None:
            return super().convert(value, param, ctx)
        console.note(f"open_clip's --precision {value}: --precision {meant}")
        return super().convert(meant, param, ctx)


def flag_of(key: Key) -> str:
    """Return the flag of a key: ``--batch-size`` of ``batch_size``."""
    if isinstance(key.flag, str):
        return key.flag
    return "--" + key.name.replace("_", "-")


def help_of(key: Key) -> str:
    """Return the help of a key's flag, with its default."""
    default = key.describe_default()
    return key.help if default is None else f"{key.help}  [default: {default}]"


def recipe_option(
    key: Key,
    checked_later: bool = True,
    kind: Any = None,
    required: bool = False,
    has_default: bool = False,
) -> Decorator:
    """Return the option of a key; it is None, or an empty tuple, when it is not given.

    With ``has_default`` it has the key's default then.

    The bounds of numbers are left to the recipe, unless they are not ``checked_later``. ``kind`` is
    click's type of the value, where the key's own type does not tell.
    """
    settings: dict[str, Any] = {
        "metavar": key.metavar,
        "help": help_of(key),
        "default": key.default if has_default else None,
        "required": required,
    }
    if key.value_type is bool:
        settings["is_flag"] = True
    else:
        settings["type"] = kind or _type_of(key, checked_later)
        settings["multiple"] = key.many
    return click.option(flag_of(key), key.name, **settings)


def former_option(key: Key) -> Decorator:
    """Return the hidden option of a key's older name, which takes older values too."""
    settings: dict[str, Any] = {"type": _type_of(key, checked_later=True), "default": None}
    if key.choices:
        settings["type"] = click.Choice([*key.choices, *key.former_values])
    return click.option(
        "--" + str(key.formerly),
        key.formerly,
        multiple=key.many,
        hidden=True,
        help=f"Older name of {flag_of(key)}.",
        **settings,
    )


def _type_of(key: Key, checked_later: bool) -> Any:
    if key.choices:
        return Precision(key.choices) if key.name == "precision" else click.Choice(key.choices)
    if key.folder:
        return click.Path(file_okay=False)
    if key.commas:
        return str
    if key.value_type is int and not checked_later:
        return click.IntRange(min=int(key.bounds["gt"]) + 1)
    return key.value_type


def recipe_options(command: Callable) -> Callable:
    """Add the options of all keys that have a flag, in the order of the schema."""
    for name, key in reversed(KEYS.items()):
        if key.flag:
            shared = name in SELECTION
            command = recipe_option(key, checked_later=not shared)(command)
        if key.flag and key.formerly is not None:
            command = former_option(key)(command)
    return command


def section_options(
    section: type[Section],
    *,
    types: Mapping[str, Any] | None = None,
    required: Sequence[str] = (),
) -> Decorator:
    """Return what adds the options of one section's keys to a command.

    ``types`` are click's types of keys whose own type does not tell the values.
    """
    types = types or {}

    def add(command: Callable) -> Callable:
        for name, key in reversed(section.schema_keys().items()):
            if key.flag:
                option = recipe_option(key, False, types.get(name), name in required)
                command = option(command)
        return command

    return add


def evaluation_options(*names: str) -> Decorator:
    """Return what adds the options of these keys of an evaluation to a command, with defaults."""
    keys = Eval.schema_keys()

    def add(command: Callable) -> Callable:
        for name in reversed(names):
            option = recipe_option(keys[name], checked_later=False, has_default=True)
            command = option(command)
        return command

    return add


def recipe_sections() -> dict[str, str]:
    """Return the headings of the recipe's options, by the first flag of each section."""
    headings = {}
    for section in SECTIONS:
        flagged = [key for key in section.schema_keys().values() if key.flag]
        first = flag_of(flagged[0]).partition("/")[0]
        headings[first] = section.title
    return headings


def source_options(command: Callable) -> Callable:
    """Add the options that say where sources lie, how they are read and which columns hold what."""
    return _with_options(command, [*SOURCES, *COLUMNS, "scratch"])


def selection_options(command: Callable) -> Callable:
    """Add the options that say which samples of the sources are used."""
    return _with_options(command, SELECTION)


def scratch_option(command: Callable) -> Callable:
    """Add the option that says where copies of remote files go."""
    return _with_options(command, ["scratch"])


def _with_options(command: Callable, names: Sequence[str]) -> Callable:
    """Add the options of the named keys to a command; click wants the last one first."""
    for name in reversed(names):
        command = recipe_option(KEYS[name], checked_later=False)(command)
    return command
