"""Lines on stderr for the user: notes that ``--quiet`` hides and details that ``--verbose`` shows.

The command line sets the level at its start; a library call prints notes and no details.
"""

from __future__ import annotations

import sys
from enum import IntEnum


class Level(IntEnum):
    """How much is printed on stderr in addition to errors."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_level = Level.NORMAL


def set_level(level: Level) -> None:
    """Set the level of this process."""
    global _level
    _level = level


def is_quiet() -> bool:
    """Tell whether only errors are printed on stderr; progress bars are hidden then."""
    return _level == Level.QUIET


def note(line: str) -> None:
    """Print a line on stderr, unless the level is quiet."""
    if _level >= Level.NORMAL:
        print(line, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """Print lines on stderr when the level is verbose."""
    if _level >= Level.VERBOSE:
        print(text, file=sys.stderr, flush=True)
