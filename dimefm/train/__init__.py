"""Stage two: train a student on cached embeddings; no teacher runs.

Calling the package trains, see :func:`train`: ``dimefm.train("recipe.toml", "runs/first")``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimefm.runtime.verbs import make_callable

if TYPE_CHECKING:
    from dimefm.recipe import Recipe


def train(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    small: bool = False,
    cache: str | os.PathLike | Sequence[str | os.PathLike] = (),
    echo: Callable[[str], None] = print,
    **settings: Any,
) -> Path:
    """Train the student that a recipe describes, and return its run folder, ``out``.

    ``recipe`` is a TOML file, a name that ``dimefm recipes`` lists, a mapping of keys, a
    :class:`~dimefm.recipe.Recipe`, or None for the defaults. ``settings`` are keys that win over
    it, and mean what they mean on the command line; docs/recipes.md lists all keys. ``small``
    applies the file's ``[small]`` table. ``cache`` is the folder that an extraction wrote (several:
    one for each teacher), in place of ``image_cache`` and ``text_cache``. ``resume`` continues from
    the newest checkpoint in ``out``. A batch size that ``settings`` do not state is lowered to the
    number of samples where there are fewer. ``echo`` gets the messages of the run.

    Raises a DimefmError, before the first step, when recipe, data and caches do not fit together.

    Example::

        dimefm.train(
            {"student": "ViT-T-16", "crops": "free", "use_pvl_loss": True},
            "runs/first",
            images=["photos/"],
            cache="cache",
        )
    """
    from dimefm.train.online_eval import scorer
    from dimefm.train.trainer import train as run

    resolved = _resolve(recipe, small, _caches(cache, settings) | _plain(settings))
    states_batch = "batch_size" in settings
    if isinstance(recipe, Mapping):
        states_batch = states_batch or "batch_size" in recipe
    fits_batch = not states_batch and not _is_recipe(recipe)
    return run(resolved, Path(out), resume, echo=echo, scorer=scorer, fits_batch=fits_batch)


def _caches(
    cache: str | os.PathLike | Sequence[str | os.PathLike], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keys that folders of caches stand for; raise RecipeError where both are named."""
    from dimefm.recipe.cache_folders import caches_below, refuse_named_caches

    given = [cache] if isinstance(cache, str | os.PathLike) else cache
    folders = [os.fspath(folder) for folder in given]
    refuse_named_caches(folders, settings)
    return caches_below(folders)


def _resolve(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike | None,
    small: bool,
    settings: Mapping[str, Any],
) -> Recipe:
    from dimefm.recipe import Recipe, read
    from dimefm.recipe.presets import path_of

    if isinstance(recipe, Recipe):
        return recipe.replace(**settings) if settings else recipe
    if isinstance(recipe, Mapping):
        return Recipe(**{**_plain(recipe), **settings})
    path = None if recipe is None else path_of(recipe)
    return read(path, small, **settings)


def _is_recipe(recipe: object) -> bool:
    from dimefm.recipe import Recipe

    return isinstance(recipe, Recipe)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with strings in place of path objects, as a recipe file has them."""
    return {name: _plain_value(value) for name, value in settings.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return tuple(_plain_value(part) for part in value)
    return value


make_callable(__name__, train)
