"""Which shards a process works on, and in which order.

A process works alone, as one rank of torchrun, or on one part of the shards.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dimefm.errors import RecipeError
from dimefm.runtime.torchrun import rank_of

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Part ``part`` (from 0) of ``parts`` of all shards.

    The shards are tried in the order of the sources, or with ``seed`` in a random order. ``ranks``
    processes work on the same part; each begins at another shard and takes what the others left.
    ``stated``: the user has said which part, so no other process does it.
    """

    part: int = 0
    parts: int = 1
    seed: int | None = None
    rank: int = 0
    ranks: int = 1
    stated: bool = field(default=False, compare=False)

    @property
    def needs_locks(self) -> bool:
        """Whether other processes may take the same shards."""
        is_divided = self.stated or self.parts > 1
        return self.ranks > 1 or not is_divided

    @property
    def whole(self) -> bool:
        """Whether the process works on all shards."""
        return self.parts == 1

    def of(self, shards: Sequence[T]) -> list[T]:
        """Return the shards of this process in the order in which it tries them."""
        part = list(shards[self.part :: self.parts])
        if self.seed is not None:
            random.Random(self.seed).shuffle(part)
        begin = len(part) * self.rank // self.ranks
        return part[begin:] + part[:begin]


ALL = Share()


def share_of(
    shard_range: str | None, seed: int | None, environment: Mapping[str, str] = os.environ
) -> Share:
    """Return the share of ``--shard-range I/N`` and of torchrun's RANK and WORLD_SIZE.

    Raises RecipeError for a range that is not I/N with 0 <= I < N.
    """
    part = 0
    parts = 1
    if shard_range:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard_range)
        if match is not None:
            part = int(match[1])
            parts = int(match[2])
        if match is None or part >= parts:
            raise RecipeError(
                f"--shard-range {shard_range}: expected I/N with 0 <= I < N. Fix: write e.g. 0/8"
                " for the first of 8 parts of the shards"
            )
    rank, ranks = rank_of(environment)
    return Share(part, parts, seed, rank, ranks, stated=bool(shard_range))
