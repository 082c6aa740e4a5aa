"""A mapped file that is cut short while it is read: one line in place of an end without a word.

The system then sends SIGBUS, which ends the process. Readers compare the size of a file before they
read its map; what is cut off between this look and the reading ends here.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from typing import Any

ADDRESS_OFFSET = 16  # of the address in siginfo_t, on every 64-bit Linux
SIGINFO = 4  # SA_SIGINFO: the handler is given a siginfo_t
MASK_BYTES = 128  # of a sigset_t
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* +(/.*)")

_installed: list[Any] = []  # the handler, which must live as long as the process


class _SigAction(ctypes.Structure):
    """``struct sigaction`` as the C library of Linux has it."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * MASK_BYTES),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


def explain_bus_errors() -> None:
    """From now on, print which file was cut short when this process reads behind its end.

    The process then exits with 1. A SIGBUS of another cause keeps its effect. Does nothing on
    systems other than 64-bit Linux.
    """
    is_64_bit = ctypes.sizeof(ctypes.c_void_p) == 8
    if _installed or sys.platform != "linux" or not is_64_bit:
        return
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    handler = handler_type(_end)
    action = _SigAction()
    action.handler = ctypes.cast(handler, ctypes.c_void_p).value
    action.flags = SIGINFO
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0:
        _installed.append(handler)


def _end(number: int, info: int, context: int) -> None:
    """End the process with a line about the file at the address of a SIGBUS.

    The signal comes from this very thread, in the middle of a copy from a map, so that Python's own
    state is whole.
    """
    address = ctypes.c_uint64.from_address(info + ADDRESS_OFFSET).value
    path = _mapped_file(address)
    if path is None:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        signal.raise_signal(signal.SIGBUS)
        return
    line = (
        f"\nError: {path}: was cut short while it was read. Fix: restore it (a .flat copy: remove"
        " it and its .sha256, it is made again), then run the same command again\n"
    )
    os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(1)


def _mapped_file(address: int) -> str | None:
    """Return the file that is mapped at an address of this process, None if there is none."""
    with open("/proc/self/maps", encoding="utf-8", errors="backslashreplace") as maps:
        for line in maps:
            match = MAPPING.match(line)
            if match and int(match[1], 16) <= address < int(match[2], 16):
                return match[3].rstrip("\n")
    return None
