"""dimefm makes a small CLIP out of a large one, with no teacher in the training loop.

Five steps, each a function::

    import dimefm

    # 1. The teacher reads your images and texts once; its embeddings go to caches on disk.
    dimefm.extract("ViT-B-32/openai", "cache", images="photos/", texts="sentences.txt")

    # 2. A student learns from the caches. The keyword arguments are the keys of a recipe.
    dimefm.train(
        None,
        "runs/first",
        images=["photos/"],
        cache="cache",
        student="ViT-T-16",
        crops="free",
    )

    # 3. The student is scored zero-shot on the datasets of a folder.
    results = dimefm.evaluate("runs/first", "datasets/")

    # 4. The student encodes images and texts.
    model = dimefm.load("runs/first")
    cosines = model.encode_image(["cat.jpg"]) @ model.encode_text(["a photo of a cat"]).T

    # 5. The student leaves: a folder that open_clip loads, with all that it needs.
    dimefm.export("runs/first", "open_clip", "exported")

``dimefm.FeatureCache("cache/images")`` reads embeddings by row number. ``dimefm.errors`` holds the
errors. docs/python.md shows more, and ``help(dimefm.train)`` describes one function. The same verbs
are commands: ``dimefm --help``.

Importing this package imports no torch; the functions do when they are called.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from dimefm.runtime.home import ensure_home

ensure_home()

try:
    __version__ = version("dimefm")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "FeatureCache",
    "Model",
    "__version__",
    "evaluate",
    "export",
    "extract",
    "load",
    "train",
]

PUBLIC = {
    "FeatureCache": "dimefm.cache",
    "Model": "dimefm.models.model",
    "load": "dimefm.models.model",
}
"""Public names that are imported when they are first used, and where they live."""

VERBS = ("extract", "train", "evaluate", "export")
"""Packages that can be called."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    if name in (*VERBS, "errors"):
        return importlib.import_module(f"dimefm.{name}")
    raise AttributeError(f"module 'dimefm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC, *VERBS])
