"""Threads for a stream of batches: readers beside a GPU; on a CPU lanes, each of which does the
whole of a batch alone.

On a CPU a batch on each core is quicker than one batch on all cores: no core waits for another at
every layer, and reading and decoding fill the gaps. Up to ``MOST`` lanes, since each holds the
activations of a batch; they share the cores evenly.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

MOST = 8

T = TypeVar("T")
R = TypeVar("R")


def encode_thread_count(device: torch.device) -> int:
    """Return how many batches are encoded at the same time on ``device``."""
    return min(torch.get_num_threads(), MOST) if device.type == "cpu" else 1


@contextmanager
def encode_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one thread for each lane of a CPU, each with its part of torch's threads; the
    end drops what waits.
    """
    threads, count = torch.get_num_threads(), encode_thread_count(device)
    pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (max(1, threads // count),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # or later threads of this process would begin with a lane's


def prefetch_map(
    pool: ThreadPoolExecutor, most: int, do: Callable[[T], R], tasks: Iterable[T]
) -> Iterator[tuple[T, R]]:
    """Yield (task, do(task)) in order; at most ``most`` are in the pool at a time, and no further
    one is asked for.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    tasks = iter(tasks)
    try:
        while True:
            for task in itertools.islice(tasks, most - len(waiting)):
                waiting.append((task, pool.submit(do, task)))
            if not waiting:
                return
            task, done = waiting.popleft()
            yield task, done.result()
    finally:
        for _, done in waiting:
            done.cancel()
