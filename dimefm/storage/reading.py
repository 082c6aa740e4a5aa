"""Read the file of a row; an error of the row and an error of the machine are told apart.

A row that is at fault is quarantined. An error of the machine says nothing about the row: the read
is tried again, and then the job ends with one line. No row is left out because a disk, the network
or the memory failed for a moment.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dimefm.errors import BadRow, DataError
from dimefm.runtime.os_errors import REMEDIES

T = TypeVar("T")

PAUSES = (0.1, 1.0, 4.0)  # seconds before the second, third and fourth try
LARGEST_FILE = 1 << 29  # bytes of one image file
ROW_FAULTS = frozenset(
    {
        errno.ENOENT,  # no such file
        errno.ENOTDIR,  # a file in the place of a folder
        errno.EISDIR,  # a folder in the place of a file
        errno.ELOOP,  # a link to itself
        errno.ENAMETOOLONG,
        errno.EILSEQ,  # a name that the file system cannot hold
        errno.ENXIO,  # a socket
    }
)
FORBIDDEN = (errno.EACCES, errno.EPERM)  # to wait does not help
NO_MEMORY = re.compile(
    r"out of memory|not enough memory|insufficient memory|cannot allocate memory"
    r"|can't allocate memory|can't start new thread|Error -4 ",
    re.IGNORECASE,
)


def is_row_fault(error: BaseException) -> bool:
    """Tell whether an error that came up while a row was read or decoded is the fault of the row.

    A missing file, a name that no file can have, and whatever a parser says of bytes are faults of
    the row. Errors of input and output, a lack of memory, of threads or of open files, and an
    interrupt are not.
    """
    if isinstance(error, BadRow):
        return True
    if not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in ROW_FAULTS
    return not lacks_memory(error)


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error means a lack of memory or threads; libraries have many words for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return NO_MEMORY.search(str(error)) is not None


def patiently(read: Callable[[], T], where: str | Path) -> T:
    """Return ``read()``; after an error of the machine try again, a few times, with pauses.

    An error that is the row's fault is raised as it is. Raises DataError, naming ``where``, when
    the machine goes on failing.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return read()
        except OSError as error:
            if is_row_fault(error):
                raise
            is_last = error.errno in FORBIDDEN or tries > len(PAUSES)
            if is_last:
                raise _stop(error, where, tries) from error
        time.sleep(PAUSES[tries - 1])


def _stop(error: OSError, where: str | Path, tries: int) -> DataError:
    """Return the error that ends the job."""
    reason = error.strerror or " ".join(str(error).split())
    often = f", tried {tries} times" if tries > 1 else ""
    return DataError(
        f"{where}: cannot be read ({reason}{often}). Fix: {remedy_of(error)}, and run the same"
        " command again"
    )


def remedy_of(error: OSError) -> str:
    """Return what to do about an error of the machine, for messages."""
    return REMEDIES.get(error.errno or 0, REMEDIES[errno.EIO])


def read_file(path: Path, most: int = LARGEST_FILE) -> bytes:
    """Return the bytes of the file of a row.

    Raises BadRow when the row is at fault: there is no such file, it is none (a folder, a pipe, a
    device), or it has more than ``most`` bytes. Raises DataError when the machine fails.
    """
    try:
        return patiently(lambda: _bytes_of(path, most), path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BadRow(f"cannot be read: {reason}") from error


def _bytes_of(path: Path, most: int) -> bytes:
    # Without O_NONBLOCK the open of a pipe waits for somebody who writes into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise BadRow("cannot be read: it is a pipe or a device, no file")
        if status.st_size > most:
            raise BadRow(
                f"cannot be read: {status.st_size:,} bytes, the limit of a file is {most:,}"
            )
        return file.read()
