"""The machine that computed something: processor, memory, GPU and operating system."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Return what is known of this machine.

    Keys: ``cpu`` (name of the processor), ``cores`` (that this process may use), ``memory_bytes``
    (None where unknown), ``gpus`` (names), ``system`` and ``python``. No name of the host or of a
    user is among them.
    """
    import torch

    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            gpus.append(torch.cuda.get_device_name(number))
    return {
        "cpu": _processor(),
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Return the name of the processor, or its kind where its name is not known."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = re.findall(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    if not names:
        return platform.processor() or platform.machine()
    return names[0].strip()


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
