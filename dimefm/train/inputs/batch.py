"""A micro-batch, as the loaders of images and of texts make it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from torch import Tensor

from dimefm.data import Rows
from dimefm.errors import BadRow

Epochs = TypeVar("Epochs", int, np.ndarray)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B places, of which this process has n that could be read.

    ``pixels`` uint8 [n, S, S, 3] or ``tokens`` [n, L] or (pairs) both are what the student encodes
    at ``places`` [n], ascending. ``same_modality`` are each teacher's embeddings [B, D] of what the
    student encodes at all places, in any process. ``other_modality`` are its embeddings [N, D] of
    the other modality; None: the same embeddings. For pairs the former are of the images [B, D],
    the latter of the captions [B, D] at all places. Where a step shows V views or C captions, all
    of these have an axis of V or C behind the first. ``bad`` are the rows of this process that
    could not be read.

    ``hidden`` [n, L] are the tokens hidden from the first captions. ``teacher_extras`` are what
    some losses need of each teacher, by the name of the field of :class:`~dimefm.losses.Features`:
    embeddings [B, ...] for all places.
    """

    pixels: Tensor | None
    tokens: Tensor | None
    places: np.ndarray
    same_modality: tuple[Tensor, ...]
    other_modality: tuple[Tensor, ...] | None
    bad: list[dict]
    hidden: Tensor | None = None
    teacher_extras: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens if self.pixels is None else self.pixels)

    @property
    def paired(self) -> bool:
        """Whether images and captions are encoded, and embeddings of both belong to the places."""
        return self.pixels is not None and self.tokens is not None


@dataclass(frozen=True)
class Shown:
    """How many views (or captions) of each row a step shows: the next ones in each epoch."""

    count: int

    def numbers(self, epoch: Epochs) -> list[Epochs]:
        """Return the numbers of what is shown in an epoch, counted on from the first epoch."""
        first = epoch * self.count
        return [first + number for number in range(self.count)]

    def axis(self) -> tuple[int, ...]:
        """Return the axis that several views have in a shape, () of one view."""
        return (self.count,) if self.count > 1 else ()


def bad_row(rows: Rows, number: int, error: BadRow) -> dict:
    """Return the record of raw row ``number``, which could not be read."""
    shard, local = rows.locate(number)
    return {"source": rows.shards[shard].name, "row": local, "reason": str(error)}
