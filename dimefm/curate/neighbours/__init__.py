"""Nearest neighbours inside a feature cache: which other rows are most like each row.

``build`` finds them once with faiss and writes a folder, :class:`Neighbours` opens it and draws
from it. Importing this package, and drawing, needs neither faiss nor torch: faiss is imported while
the neighbours are searched. The files are specified in ``docs/cache-format.md``.
"""

from dimefm.curate.neighbours.build import build
from dimefm.curate.neighbours.graph import Neighbours, Rule

__all__ = ["Neighbours", "Rule", "build"]
