"""Recipe files: their tables, and the files that they are based on.

A file holds the keys of a recipe at its top level, or, as a pipeline file, in a table ``[train]``
in addition to the tables of other stages. ``[small]`` holds what ``--small`` replaces: keys, or
tables of them. ``base = "other.toml"`` takes everything from another file, whose keys this one
replaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimefm.errors import RecipeError, did_you_mean
from dimefm.storage.small_files import Unreadable, read_toml

STAGES = ("extract", "train", "eval", "export")

Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RecipeFile:
    """One file: the keys of each stage, and those that ``--small`` replaces, by stage."""

    path: Path
    stages: Tables
    small: Tables


def read_files(path: Path) -> list[RecipeFile]:
    """Return a recipe file behind all files that it is based on, the furthest base first.

    The keys are not checked. Raises RecipeError for a file that is no TOML or has another form, and
    for a base that leads back to its own file.
    """
    files: list[RecipeFile] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        _refuse_circle(following, seen)
        seen.append(following)
        tables = _parse(following)
        base = _base_of(tables, following)
        files.append(_file_of(tables, following))
        following = base
    return files[::-1]


def _refuse_circle(path: Path, seen: Sequence[Path]) -> None:
    if path.resolve() in [one.resolve() for one in seen]:
        chain = " -> ".join(str(one) for one in [*seen, path])
        raise RecipeError(f"{seen[0]}: its base leads back to it ({chain}). Fix: remove one base")


def _parse(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except (OSError, Unreadable) as error:
        raise RecipeError(
            f"{path}: cannot be read as TOML: {error}. Fix: correct the file"
        ) from error


def _base_of(tables: dict[str, Any], path: Path) -> Path | None:
    """Take ``base`` out of the tables of a file and return the path that it means."""
    base = tables.pop("base", None)
    if base is None:
        return None
    if not isinstance(base, str):
        raise RecipeError(
            f"{path}: 'base' is {base!r}; expected the path of a TOML file. Fix: correct it"
        )
    return path.parent / base


def _file_of(tables: dict[str, Any], path: Path) -> RecipeFile:
    small = tables.pop("small", {})
    if not isinstance(small, dict):
        raise RecipeError(
            f"{path}: 'small' is {small!r}; expected a table, [small], of keys that --small"
            " replaces. Fix: correct it"
        )
    if not any(isinstance(tables.get(stage), dict) for stage in STAGES):
        if not any(isinstance(small.get(stage), dict) for stage in STAGES):
            return RecipeFile(path, {"train": tables}, {"train": small})
    _refuse_others(tables, path, "")
    _refuse_others(small, path, "small.")
    return RecipeFile(path, tables, small)


def _refuse_others(tables: Mapping[str, Any], path: Path, prefix: str) -> None:
    """Raise RecipeError for anything but tables of stages."""
    for name, keys in tables.items():
        if name not in STAGES:
            raise RecipeError(
                f"{path}: unknown table '{prefix}{name}': {did_you_mean(name, STAGES)} (keys of a"
                f" recipe belong in [{prefix}train])"
            )
        if not isinstance(keys, dict):
            raise RecipeError(
                f"{path}: '{prefix}{name}' is {keys!r}; expected a table. Fix: correct it"
            )
