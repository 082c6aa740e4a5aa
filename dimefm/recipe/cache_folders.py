"""``--cache DIR``: the folder that an extraction wrote stands for the caches below it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from dimefm.errors import RecipeError
from dimefm.runtime.text import first_few

BELOW = {"image_cache": "images", "text_cache": "texts"}
"""Key of a recipe -> the folder below that an extraction writes for it."""


def refuse_named_caches(folders: Sequence[str], given: Container[str]) -> None:
    """Raise RecipeError when keys that ``folders`` of --cache stand for are given, too."""
    named = [key for key in BELOW if key in given]
    if folders and named:
        raise RecipeError(f"cache stands for {' and '.join(named)}, too. Fix: remove one")


def caches_below(folders: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return ``image_cache`` and ``text_cache`` of folders, one for each teacher.

    A folder may lack one of the two caches; a URL is taken to have both. Raises RecipeError for a
    folder that has neither.
    """
    caches: dict[str, tuple[str, ...]] = {}
    for folder in folders:
        is_remote = "://" in folder
        names = {key: name for key, name in BELOW.items() if is_remote or _has(folder, name)}
        if not names:
            reason = _neither(folder)
            raise RecipeError(reason)
        for key, name in names.items():
            caches[key] = (*caches.get(key, ()), f"{folder.rstrip('/')}/{name}")
    return caches


def _has(folder: str, name: str) -> bool:
    return (Path(folder) / name).is_dir()


def _neither(folder: str) -> str:
    """Return the complaint about a folder without caches, with those of teachers below it."""
    path = Path(folder)
    if not path.is_dir():
        return f"--cache {folder}: there is no such folder. Fix: check the path"
    teachers = []
    for below in sorted(path.iterdir()):
        if any(_has(str(below), name) for name in BELOW.values()):
            teachers.append(str(below))
    complaint = f"--cache {folder}: has neither images/ nor texts/, expected one of them"
    if teachers:
        return f"{complaint}. Fix: name the folder of each teacher: {first_few(teachers, 4)}"
    return f"{complaint}. Fix: name the --out of extract-features, or use --image-cache"
