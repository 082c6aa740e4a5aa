"""Batches in flight: on a GPU the next one is started before the rows of the last are fetched, so
that neither waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class Pending:
    """One batch of inputs on its way through ``encode``, which returns rows [B, D] on ``device``.

    On a CPU it is done at once. On a GPU the work and the copy of its rows to pinned memory are
    only queued.
    """

    pieces = 1

    def __init__(self, encode: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device):
        self._cuda = device.type == "cuda"
        if not self._cuda:
            started = time.perf_counter()
            self._rows = encode(inputs)
            self._seconds = time.perf_counter() - started
            return
        self._began, self._ended, self._there = (
            torch.cuda.Event(enable_timing=True) for _ in range(3)
        )
        self._inputs = inputs  # pinned memory that a copy may still read
        self._began.record()
        rows = encode(inputs)
        self._ended.record()
        self._rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(
            rows, non_blocking=True
        )
        self._there.record()

    def fetch(self) -> tuple[np.ndarray, float]:
        """Return (rows [B, D], seconds that the encoder was busy with them)."""
        if self._cuda:
            self._there.synchronize()
            self._seconds = self._began.elapsed_time(self._ended) / 1000
        return self._rows.numpy(), self._seconds
