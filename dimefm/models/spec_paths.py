"""Look whether the paths in the names of models exist, before anything that takes seconds.

This module imports neither torch nor open_clip.
"""

from __future__ import annotations

from pathlib import Path

from dimefm.errors import ModelError

LOCAL_DIR = "local-dir:"


def refuse_absent_models(*specs: str | None) -> None:
    """Raise ModelError for the name of a model that is a path, and nothing is there.

    Other names, like ``ARCH/TAG``, are looked up when open_clip is imported.
    """
    for spec in specs:
        if spec is not None:
            path_of(spec)


def path_of(spec: str) -> Path:
    """Return the path that the name of a model may be, without open_clip's ``local-dir:``.

    Raises ModelError when the name can be nothing but a path, and nothing is there.
    """
    path = Path(spec.removeprefix(LOCAL_DIR))
    if spec.startswith(LOCAL_DIR):
        if spec == LOCAL_DIR or not path.is_dir():
            raise ModelError(f"{spec}: there is no such folder. Fix: check the path")
        return path
    if (path.is_absolute() or spec.startswith(".")) and not path.exists():
        raise ModelError(f"{spec}: there is no such file or folder. Fix: check the path")
    return path
