"""Packages that are functions: ``dimefm.train(...)`` trains, ``dimefm.train.trainer`` is a module.

A package named after a verb holds the modules that do the work. Importing one of them makes Python
set ``dimefm.train`` to the package, so the package itself has to be what users call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType


def make_callable(package: str, function: Callable) -> None:
    """Make calling the package of this name call ``function``, with its signature and docstring."""

    class Verb(ModuleType):
        __call__ = staticmethod(function)

    module = sys.modules[package]
    module.__class__ = Verb
    module.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
