"""The rank of this process, from torchrun's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping


def rank_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (rank, number of processes), from RANK and WORLD_SIZE; (0, 1) without torchrun."""
    rank = int(environment.get("RANK", "0"))
    world_size = int(environment.get("WORLD_SIZE", "1"))
    return rank, world_size
