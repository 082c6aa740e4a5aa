"""Datasets in a folder, for programs that import them from here.

They are in :mod:`dimefm.evaluate.datasets.layouts`.
"""

from __future__ import annotations

from dimefm.evaluate.datasets.layouts import Dataset, find

__all__ = ["Dataset", "find"]
