"""The tables of a pipeline file, read and checked before any stage runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimefm.errors import RecipeError, did_you_mean
from dimefm.experiment.tables import read_tables, set_keys
from dimefm.recipe import Recipe
from dimefm.recipe.schema.evaluation import Eval
from dimefm.recipe.schema.exporting import Export
from dimefm.recipe.schema.extraction import Extract
from dimefm.recipe.section import Section

TABLES = ("extract", "train", "eval", "export")


@dataclass(frozen=True)
class Experiment:
    """The checked tables of one pipeline file; a table that the file lacks is None."""

    path: Path
    extract: Extract | None
    train: Recipe | None
    eval: Eval | None
    export: Export | None = None


def read_experiment(
    path: str | Path,
    small: bool = False,
    dataroot: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Experiment:
    """Read the pipeline file at ``path``.

    With ``small``, tables like ``[small.train]`` win over the others. ``dataroot`` is the folder of
    relative sources, and of the datasets to evaluate. ``settings`` (table -> key -> value) win over
    the file. Raises RecipeError, naming the file and the table, for a key that is unknown or a
    value that cannot be.
    """
    path = Path(path)
    tables = read_tables(path, small)
    _refuse_unknown(tables, path)
    if not any(name in tables for name in TABLES):
        raise RecipeError(
            f"{path}: holds none of the tables [extract], [train] and [eval]. Fix: put its keys"
            " into a table [train], or train it with dimefm train --recipe"
        )
    if dataroot is not None:
        _set_dataroot(tables, dataroot)
    for name, values in (settings or {}).items():
        if name not in TABLES:
            raise RecipeError(f"--set {name}: unknown table: {did_you_mean(name, TABLES)}")
        set_keys(tables, name, values)
    return Experiment(
        path=path,
        extract=_checked(Extract, "extract", tables, path),
        train=_checked(Recipe, "train", tables, path),
        eval=_checked(Eval, "eval", tables, path),
        export=_checked(Export, "export", tables, path),
    )


def _refuse_unknown(tables: Mapping[str, Any], path: Path) -> None:
    """Raise RecipeError for a table that no stage has, or a key outside of all tables."""
    for name, keys in tables.items():
        if name not in TABLES:
            raise RecipeError(f"{path}: unknown table '{name}': {did_you_mean(name, TABLES)}")
        if not isinstance(keys, dict):
            raise RecipeError(f"{path}: '{name}' is {keys!r}; expected a table, [{name}]")


def _set_dataroot(tables: dict[str, dict], dataroot: str) -> None:
    """Let the relative sources and datasets of all tables lie in ``dataroot``."""
    for name in ("extract", "train"):
        if name in tables:
            tables[name] = {**tables[name], "dataroot": dataroot}
    root = tables.get("eval", {}).get("root")
    if isinstance(root, str) and not Path(root).is_absolute():
        tables["eval"] = {**tables["eval"], "root": str(Path(dataroot) / root)}


def _checked(kind: type[Section], name: str, tables: Mapping[str, dict], path: Path) -> Any:
    """Return a table as its schema checks it, None when the file lacks it."""
    if name not in tables:
        return None
    try:
        return kind(**tables[name])
    except RecipeError as error:
        raise RecipeError(f"{path}, [{name}]: {error}") from error
