"""Packages that only some uses need: they are imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from dimefm.errors import DimefmError


def package(name: str, extra: str) -> Any:
    """Import a module of an optional package; raise DimefmError, naming the ``extra``, without it.

    ``extra`` is the one of dimefm that installs the package.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise DimefmError(
            f"the package {missing} is needed and cannot be imported ({error}). Fix: pip install"
            f" 'dimefm[{extra}]'"
        ) from error
