"""Threads for streams of batches: encoding on a CPU, prefetching, and writing in the background.

On a CPU one batch per core is faster than one batch on all cores. Cores then need not wait for one
another at every layer, and reading and decoding fill the gaps. Each encode thread holds the
activations of one batch, so there are at most ``MAX_ENCODE_THREADS``; they share the cores evenly.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import torch

MAX_ENCODE_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


def encode_thread_count(device: torch.device) -> int:
    """Return how many batches are encoded at the same time on ``device``."""
    if device.type != "cpu":
        return 1
    return min(torch.get_num_threads(), MAX_ENCODE_THREADS)


@contextmanager
def encode_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of encode threads, each with its part of torch's threads.

    Tasks that have not started are cancelled at the end.
    """
    torch_threads = torch.get_num_threads()
    count = encode_thread_count(device)
    torch_threads_each = max(1, torch_threads // count)
    pool = ThreadPoolExecutor(count, "encode", torch.set_num_threads, (torch_threads_each,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # Threads that start later take the last number that was set, which is an encode thread's.
        torch.set_num_threads(torch_threads)


def prefetch_map(
    pool: ThreadPoolExecutor, limit: int, function: Callable[[T], R], tasks: Iterable[T]
) -> Generator[tuple[T, R]]:
    """Yield (task, ``function(task)``) in the order of the tasks, computed ahead in ``pool``.

    At most ``limit`` tasks are in the pool at a time, and no further task is drawn from ``tasks``.
    Closing the generator cancels the tasks that have not started.
    """
    submitted: deque[tuple[T, Future[R]]] = deque()
    remaining = iter(tasks)
    try:
        while True:
            for task in itertools.islice(remaining, limit - len(submitted)):
                submitted.append((task, pool.submit(function, task)))
            if not submitted:
                return
            task, future = submitted.popleft()
            yield task, future.result()
    finally:
        for _, future in submitted:
            future.cancel()


class BackgroundWriter:
    """A thread that makes the calls it is given, in order; use it as a context manager.

    At most ``MAX_PENDING`` calls wait when :meth:`submit` returns. An error in a call is raised by
    a later :meth:`submit` or at the end of the context; the calls after it are dropped.
    """

    MAX_PENDING = 4

    def __enter__(self) -> BackgroundWriter:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Future] = deque()
        self._failed = False
        return self

    def submit(self, function: Callable, *arguments: object) -> None:
        """Queue the call ``function(*arguments)``; wait while too many calls are pending."""
        self._pending.append(self._pool.submit(self._call, function, *arguments))
        while len(self._pending) > self.MAX_PENDING:
            self._pending.popleft().result()

    def _call(self, function: Callable, *arguments: object) -> None:
        if self._failed:
            return
        try:
            function(*arguments)
        except BaseException:
            self._failed = True
            raise

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        if error_type is None:
            for future in self._pending:
                future.result()
