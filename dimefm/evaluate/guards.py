"""One guard around each dataset: whatever a library raises becomes one line with its place.

A damaged dataset then fails by itself, and the others are scored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dimefm.errors import DataError, DimefmError
from dimefm.runtime.printable import shown
from dimefm.storage.reading import lacks_memory

LONGEST_REASON = 200
"""Characters of another library's message."""


@contextlib.contextmanager
def dataset_guard(folder: Path) -> Iterator[None]:
    """Raise DataError, which names the dataset's ``folder``, in place of any foreign error.

    Errors of dimefm pass through. An interrupt ends the evaluation.
    """
    try:
        yield
    except DimefmError:
        raise
    except Exception as error:
        raise DataError(_line(folder, error)) from error


def _line(folder: Path, error: Exception) -> str:
    """Return the line for an error that some library raised."""
    reason = reason_of(error)
    if lacks_memory(error):
        return (
            f"{folder}: out of memory ({reason}). Fix: lower --batch-size, or free memory of other"
            " programs"
        )
    if isinstance(error, OSError) and error.errno is not None:
        place = shown(error.filename or folder, LONGEST_REASON)
        return (
            f"{place}: {error.strerror}. Fix: check the disk and the permissions, and run the same"
            " command again"
        )
    return f"{folder}: cannot be scored ({reason}). Fix: fetch the dataset again"


def reason_of(error: Exception) -> str:
    """Return the kind of an error and the beginning of its message, in one line."""
    name = type(error).__name__
    message = shown(error, LONGEST_REASON)
    return f"{name}: {message}" if message else name
