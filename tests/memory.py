"""Memory of this program alone, for programs that tests start."""

import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_kib() -> int:
    """Return the most KiB that this program has had in memory.

    ``ru_maxrss`` of a new program begins with the peak of the one that started it, so after many
    tests it says nothing; it is used where there is no ``/proc``.
    """
    try:
        status = STATUS.read_text()
    except FileNotFoundError:
        unit = 1024 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
    peak = re.search(r"^VmHWM:\s*(\d+)", status, re.MULTILINE)
    assert peak is not None
    return int(peak[1])
