"""Which versions computed something."""

from __future__ import annotations

import importlib.metadata

NAMES = ("dimefm", "torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow")


def libraries() -> dict[str, str]:
    """Return name -> version of the libraries that decide numbers; "absent" for one that is not
    installed.
    """
    found = {}
    for name in NAMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
