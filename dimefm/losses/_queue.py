"""A ring of unit rows seen lately, in which DeCLIP looks for the nearest neighbour of a
sentence.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.losses._modules import FeatureDims

ROWS = 4096  # looked up at a time

Wrap = Literal["released", "whole"]


class Bank(nn.Module):
    """A ring of ``size`` unit rows [size, D] and the place of the next one; random unit rows at
    first.

    Both are buffers, so they are in checkpoints. In the release they are not, and each process has
    a ring of its own.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Return for each unit row [B, D] the row of the ring with the largest cosine, of unit
        length, without gradient.
        """
        found = [(some.to(self.rows) @ self.rows.T).argmax(1) for some in rows.detach().split(ROWS)]
        return F.normalize(self.rows[torch.cat(found)], dim=1)

    @torch.no_grad()
    def push(self, rows: Tensor, wrap: Wrap) -> None:
        """Put rows [B, D] in the place of the oldest ones.

        At the end of the ring "whole" goes on at its start, "released" throws the rest of the rows
        away and begins there.
        """
        size, start = len(self.rows), int(self.place)
        rows = rows.detach().to(self.rows)
        if wrap == "released":
            rows = rows[: size - start]
        places = torch.arange(start, start + len(rows), device=rows.device)[-size:] % size
        self.rows[places] = rows[-size:]
        self.place.fill_((start + len(rows)) % size)


def bank(widths: FeatureDims, size: int) -> nn.Module:
    """A ring of the student's rows."""
    return Bank(size, widths.student)


def teacher_bank(widths: FeatureDims, size: int) -> nn.Module:
    """A ring of the teacher's rows."""
    return Bank(size, widths.teacher)
