"""Threads for a stream of batches: readers beside a GPU; on a CPU lanes, each of which does the whole of a batch alone.

On a CPU a batch on each core is quicker than one batch on all cores: no core waits for another at every layer, and reading
and decoding fill the gaps. Up to ``MOST`` lanes, since each holds the activations of a batch; they share the cores evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

MOST = 8


def lanes_of(device: torch.device) -> int:
    """Return how many batches are encoded at the same time on ``device``."""
    return min(torch.get_num_threads(), MOST) if device.type == "cpu" else 1


@contextmanager
def lanes(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one thread for each lane of a CPU, each with its part of torch's threads."""
    threads, count = torch.get_num_threads(), lanes_of(device)
    try:
        with ThreadPoolExecutor(count, "lane", torch.set_num_threads, (max(1, threads // count),)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # or later threads of this process would begin with a lane's
