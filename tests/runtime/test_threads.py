"""Threads of a stream: order and laziness of prefetching, errors of a background writer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dimefm.runtime.threads import BackgroundWriter, prefetch_map


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_prefetched_results_come_in_the_order_of_the_tasks(pool):
    def slow_at_first(task):
        time.sleep(0.05 if task == 0 else 0)
        return task * task

    assert list(prefetch_map(pool, 3, slow_at_first, range(10))) == [(n, n * n) for n in range(10)]
    assert list(prefetch_map(pool, 3, slow_at_first, [])) == []


def test_no_more_tasks_are_drawn_than_allowed(pool):
    drawn = []

    def tasks():
        for number in range(100):
            drawn.append(number)
            yield number

    results = prefetch_map(pool, 5, str, tasks())
    assert drawn == []
    for yielded in range(1, 4):
        next(results)
        assert len(drawn) == 4 + yielded
    results.close()


def test_closing_cancels_what_has_not_begun():
    started = []
    may_end = threading.Event()

    def wait(task):
        started.append(task)
        if task > 0:
            may_end.wait(10)

    with ThreadPoolExecutor(1) as pool:
        results = prefetch_map(pool, 8, wait, range(8))
        next(results)
        results.close()
        may_end.set()
    assert set(started) <= {0, 1}


def test_an_error_of_a_task_is_raised_at_its_place(pool):
    results = prefetch_map(pool, 4, lambda task: 12 // task, [3, 2, 0, 1])
    assert [next(results), next(results)] == [(3, 4), (2, 6)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_calls_in_the_background_are_made_in_order_by_one_thread():
    calls = []

    def call(number):
        calls.append((number, threading.get_ident()))

    with BackgroundWriter() as writer:
        for number in range(20):
            writer.submit(call, number)
    assert [number for number, _ in calls] == list(range(20))
    assert len({thread for _, thread in calls}) == 1
    assert calls[0][1] != threading.get_ident()


def test_the_submitter_waits_while_too_many_calls_are_pending():
    may_end = threading.Event()
    submitted = []

    def fill(writer):
        for number in range(10):
            writer.submit(may_end.wait, 10)
            submitted.append(number)

    with BackgroundWriter() as writer:
        filler = threading.Thread(target=fill, args=(writer,))
        filler.start()
        deadline = time.monotonic() + 5
        while len(submitted) < BackgroundWriter.MAX_PENDING and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(submitted) == BackgroundWriter.MAX_PENDING
        may_end.set()
        filler.join()
    assert len(submitted) == 10


def test_an_error_in_the_background_is_raised_and_later_calls_are_dropped():
    calls = []

    def fail():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), BackgroundWriter() as writer:
        writer.submit(calls.append, "before")
        writer.submit(fail)
        writer.submit(calls.append, "after")
    assert calls == ["before"]


def test_an_error_of_the_caller_is_not_replaced_by_one_in_the_background():
    def fail():
        raise OSError("the disk is full")

    with pytest.raises(KeyboardInterrupt), BackgroundWriter() as writer:
        writer.submit(fail)
        raise KeyboardInterrupt
