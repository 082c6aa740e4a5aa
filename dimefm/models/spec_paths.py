"""Look whether the paths in the names of models exist, before anything that takes seconds.

This module imports neither torch nor open_clip.
"""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from pathlib import Path

from dimefm import plugins
from dimefm.errors import ModelError, did_you_mean

LOCAL_DIR = "local-dir:"
OTHER_LIBRARIES = ("timm",)  # their names are no architectures of open_clip
OTHER_SEPARATORS = re.compile("[:,@ ]")


def refuse_absent_models(*specs: str | None) -> None:
    """Raise ModelError for the name of a model that is a path, and nothing is there.

    Other names, like ``ARCH/TAG``, are looked up when open_clip is imported.
    """
    for spec in specs:
        if spec is not None:
            path_of(spec)


def refuse_unknown_models(*specs: str | None) -> None:
    """Raise ModelError for the name of a model that is no path and has no known architecture.

    Names like ``hf-hub:ORG/MODEL`` and the tags of an architecture are left to those who load them.
    """
    refuse_absent_models(*specs)
    for spec in specs:
        if spec is None or Path(spec).exists():
            continue
        architecture = spec.partition("/")[0]
        is_other = ":" in architecture and re.match("[a-z-]+:", architecture) is not None
        if not is_other and architecture not in {*architectures(), *OTHER_LIBRARIES}:
            raise unknown_model(spec)


def unknown_model(spec: str) -> ModelError:
    """Return the error for a name that is no path and has no known architecture."""
    architecture = spec.partition("/")[0]
    other = OTHER_SEPARATORS.sub("/", spec, count=1)
    if other.partition("/")[0] in architectures():
        return ModelError(f"{spec}: unknown architecture '{architecture}'. Fix: write {other}")
    complaint = f"{spec}: no such file or folder, and unknown architecture '{architecture}'"
    hint = did_you_mean(architecture, architectures())
    if hint.startswith("did you mean"):
        return ModelError(f"{complaint}: {hint}")
    return ModelError(
        f"{complaint}. Fix: check the path, or write ARCH/TAG of open_clip, e.g. ViT-B-32/openai"
    )


@functools.cache
def architectures() -> frozenset[str]:
    """Return the names of the architectures of open_clip and dimefm, by their files."""
    folders = [plugins.ROOT / plugins.FOLDERS["students"][0]]
    package = find_spec("open_clip")
    if package is not None:
        folders += [Path(place) / "model_configs" for place in package.submodule_search_locations]
    return frozenset(file.stem for folder in folders for file in folder.glob("*.json"))


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
