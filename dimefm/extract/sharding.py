"""Which shards a process works on, and in which order: alone, as a rank of torchrun, or as one part
of several.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dimefm.errors import RecipeError
from dimefm.runtime.torchrun import rank_of

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Part ``part`` (from 0) of ``parts`` of all shards, in the order of the sources or, with
    ``seed``, in a random one.

    ``rank`` of ``ranks`` processes work on the same part: each begins at another place, and they
    take what is left.
    """

    part: int = 0
    parts: int = 1
    seed: int | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def whole(self) -> bool:
        """Whether the process works on all shards."""
        return self.parts == 1

    def of(self, shards: Sequence[T]) -> list[T]:
        """Return the shards of this process in the order in which it tries them."""
        found = list(shards[self.part :: self.parts])
        if self.seed is not None:
            random.Random(self.seed).shuffle(found)
        begin = len(found) * self.rank // self.ranks
        return found[begin:] + found[:begin]


ALL = Share()


def share_of(
    shard_range: str | None, seed: int | None, environment: Mapping[str, str] = os.environ
) -> Share:
    """Return the share that ``--shard-range I/N`` says and that torchrun's RANK and WORLD_SIZE say;
    raise RecipeError for a range that is none."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard_range or "0/1")
    if match is None or not 0 <= int(match[1]) < int(match[2]):
        raise RecipeError(
            f"--shard-range {shard_range}: expected I/N with 0 <= I < N, e.g. 0/8 for the first of"
            " 8 parts of the shards"
        )
    return Share(int(match[1]), int(match[2]), seed, *rank_of(environment))
