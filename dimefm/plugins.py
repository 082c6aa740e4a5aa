"""A name is a path inside the package; nothing registers itself.

============ ============================ ===========================================
kind         one file each                name
============ ============================ ===========================================
losses       ``losses/dime.py``           ``dime.pvl``: file, then a name in ``__all__``
caches       ``cache/formats/hdf5.py``    ``hdf5``
sources      ``data/formats/tar.py``      ``tar``
benchmarks   ``evaluate/benchmarks/dtd.toml`` ``dtd``
students     ``models/students/x.json``   ``x``
engines      ``extract/engines/ray.py``   ``ray``
============ ============================ ===========================================

Adding a thing is adding its file. Files that begin with an underscore are private.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

from dimefm.errors import DimefmError, did_you_mean

ROOT = Path(__file__).parent
FOLDERS = {
    "losses": ("losses", ".py"),
    "caches": ("cache/formats", ".py"),
    "sources": ("data/formats", ".py"),
    "benchmarks": ("evaluate/benchmarks", ".toml"),
    "students": ("models/students", ".json"),
    "engines": ("extract/engines", ".py"),
}

NOUNS = {
    "losses": "loss",
    "caches": "format",
    "sources": "input format",
    "benchmarks": "benchmark",
    "students": "student",
    "engines": "engine",
}


@functools.cache
def names(kind: str) -> list[str]:
    """Return the sorted names of every file of ``kind`` (a key of :data:`FOLDERS`)."""
    folder, suffix = FOLDERS[kind]
    found = (path.name.removesuffix(suffix) for path in (ROOT / folder).glob(f"*{suffix}"))
    return sorted(name for name in found if not name.startswith("_"))


def path(kind: str, name: str, error: type[DimefmError] = DimefmError) -> Path:
    """Return the file of ``name``, or raise ``error`` with the nearest known name."""
    folder, suffix = FOLDERS[kind]
    if name not in names(kind):
        raise error(f"unknown {NOUNS[kind]} '{name}': {did_you_mean(name, names(kind))}")
    return ROOT / folder / f"{name}{suffix}"


def module(kind: str, name: str, error: type[DimefmError] = DimefmError) -> ModuleType:
    """Import and return the module of ``name``, or raise ``error`` with the nearest known name."""
    path(kind, name, error)
    folder = FOLDERS[kind][0].replace("/", ".")
    return importlib.import_module(f"dimefm.{folder}.{name}")
