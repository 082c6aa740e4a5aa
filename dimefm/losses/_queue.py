"""A ring of recent unit rows, in which DeCLIP looks up the nearest neighbor of a caption."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.losses._modules import FeatureDims

ROWS_PER_LOOKUP = 4096

Wrap = Literal["released", "whole"]


class Bank(nn.Module):
    """A ring of ``size`` unit rows [size, D], and the place of the next one.

    It begins with random unit rows. Both are buffers, so they are in checkpoints. In the release
    they are not, and each process has a ring of its own.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        rows = F.normalize(torch.randn(size, dim), dim=1)
        place = torch.zeros((), dtype=torch.int64)
        self.register_buffer("rows", rows)
        self.register_buffer("place", place)

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Return the ring's row with the largest cosine to each unit row [B, D].

        The results have unit length and no gradient.
        """
        places = []
        for queries in rows.detach().split(ROWS_PER_LOOKUP):
            cosines = queries.to(self.rows) @ self.rows.T
            places.append(cosines.argmax(1))
        neighbors = self.rows[torch.cat(places)]
        return F.normalize(neighbors, dim=1)

    @torch.no_grad()
    def push(self, rows: Tensor, wrap: Wrap) -> None:
        """Put rows [B, D] in the place of the oldest ones.

        At the end of the ring "whole" continues at its start; "released" drops the rest of the rows
        and begins there with the next ones.
        """
        size = len(self.rows)
        start = int(self.place)
        rows = rows.detach().to(self.rows)
        if wrap == "released":
            rows = rows[: size - start]
        end = start + len(rows)
        places = torch.arange(start, end, device=rows.device)
        latest = places[-size:] % size
        self.rows[latest] = rows[-size:]
        self.place.fill_(end % size)


def bank(dims: FeatureDims, size: int) -> nn.Module:
    """A ring of the student's rows."""
    return Bank(size, dims.student)


def teacher_bank(dims: FeatureDims, size: int) -> nn.Module:
    """A ring of the teacher's rows."""
    return Bank(size, dims.teacher)
