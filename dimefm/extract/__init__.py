"""Stage one: run the teacher once over images and texts, and write its embeddings to a cache.

Calling the package extracts, see :func:`extract`: ``dimefm.extract(teacher=..., images=...)``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from dimefm.runtime.verbs import make_callable

if TYPE_CHECKING:
    from dimefm.cache import FeatureCache

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def extract(
    teacher: str | Sequence[str],
    out: str | os.PathLike,
    *,
    images: Paths = (),
    texts: Paths = (),
    mode: Literal["create", "append", "retry"] = "create",
    progress: bool = False,
    **settings: Any,
) -> dict[str, FeatureCache]:
    """Encode images and texts with a teacher, and return the caches that hold its embeddings.

    The caches are written to ``out/images`` and ``out/texts``, and returned as ``"image"`` and
    ``"text"``. With several teachers each has a folder, and the names are ``"FOLDER/image"`` and so
    on. An interrupted extraction is resumed, and a finished one only opened. ``settings`` are the
    options of ``dimefm extract-features`` with underscores, e.g. ``batch_size="auto"``.

    Raises RecipeError for settings that do not fit together, DataError for sources that cannot be
    read, ModelError for a teacher that cannot be loaded, and CacheError when ``out`` holds a cache
    that was made otherwise.

    Example::

        caches = dimefm.extract("ViT-B-32/openai", "cache", images="photos/", texts="texts.txt")
        print(caches["image"][[0, 1, 2]].shape)
    """
    from dimefm.cache import FeatureCache
    from dimefm.extract.request import plan_extraction
    from dimefm.extract.sharding import share_of
    from dimefm.recipe.schema.extraction import Extract

    teachers = (teacher,) if isinstance(teacher, str) else tuple(teacher)
    request = Extract(teacher=teachers, images=_strings(images), texts=_strings(texts), **settings)
    extraction = plan_extraction(request, os.fspath(out), mode, progress)
    sources = extraction.open()
    for _report in extraction.run(extraction.load(), sources, share_of(None, None)):
        pass  # each report is a finished cache

    caches = {}
    for kind, _rows in sources:
        for (folder, _load), place in zip(
            extraction.teachers, extraction.places(kind), strict=True
        ):
            name = f"{folder}/{kind}" if folder else kind
            caches[name] = FeatureCache(place, request.scratch)
    return caches


def _strings(paths: Paths) -> tuple[str, ...]:
    """Return one path, or several, as strings."""
    if isinstance(paths, str | os.PathLike):
        return (os.fspath(paths),)
    return tuple(os.fspath(path) for path in paths)


make_callable(__name__, extract)
