"""The library versions that computed something."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

NAMES = ("dimefm", "torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow")


def libraries(names: Sequence[str] = NAMES) -> dict[str, str]:
    """Return name -> version of libraries; "absent" for a library that is not installed.

    By default they are the libraries that decide the numbers of features and of training.
    """
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
