"""Lines on stderr for the user: notes that ``--quiet`` hides and details that ``--verbose`` shows.

The command line sets the level at its start; a library call prints notes and no details.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from enum import IntEnum

from dimefm.runtime.printable import PrintableStream


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


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Show what is written to stdout and stderr in the block as printable text."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(PrintableStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def note(line: str) -> None:
    """Print a line on stderr, unless the level is quiet."""
    if _level >= Level.NORMAL:
        print(line, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """Print lines on stderr when the level is verbose."""
    if _level >= Level.VERBOSE:
        print(text, file=sys.stderr, flush=True)
