"""What torchrun's environment says about this process."""

from __future__ import annotations

import os
from collections.abc import Mapping


def rank_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (number of this process, number of processes) that torchrun's RANK and WORLD_SIZE say;
    (0, 1) alone.
    """
    return int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
