"""The command ``dimefm``, also as ``python -m dimefm``.

This module imports nothing that takes time, so that an interrupt during the imports is one line,
too.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command line and run it."""
    try:
        from dimefm.cli import main as command_line
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
