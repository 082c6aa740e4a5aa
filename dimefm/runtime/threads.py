"""Threads that work on a stream of batches: they encode on a CPU, or read ahead for a GPU.

On a CPU one batch on each core is faster than one batch on all cores: no core waits for another at
every layer, and reading and decoding fill the gaps. There are at most ``MOST_ENCODE_THREADS``
encoding threads, since each holds the activations of a batch; they share the cores evenly.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

MOST_ENCODE_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


def encode_thread_count(device: torch.device) -> int:
    """Return how many batches are encoded at the same time on ``device``."""
    if device.type != "cpu":
        return 1
    return min(torch.get_num_threads(), MOST_ENCODE_THREADS)


@contextmanager
def encode_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads that encode on ``device``; torch's threads are split among them.

    At the end of the block tasks that have not begun are canceled.
    """
    torch_threads = torch.get_num_threads()
    count = encode_thread_count(device)
    threads_each = max(1, torch_threads // count)
    pool = ThreadPoolExecutor(count, "encode", torch.set_num_threads, (threads_each,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # later threads of this process would begin with the number of an encoding thread
        torch.set_num_threads(torch_threads)


def prefetch_map(
    pool: ThreadPoolExecutor, most: int, do: Callable[[T], R], tasks: Iterable[T]
) -> Iterator[tuple[T, R]]:
    """Yield (task, do(task)) in order, computed ahead in ``pool``.

    At most ``most`` tasks are taken from ``tasks`` and not yet yielded.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    tasks = iter(tasks)
    try:
        while True:
            room = most - len(waiting)
            for task in itertools.islice(tasks, room):
                future = pool.submit(do, task)
                waiting.append((task, future))
            if not waiting:
                return
            task, future = waiting.popleft()
            yield task, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
