"""Threads and processes that use one cache at once, forked or spawned, read the same rows in every
format.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dimefm.cache import FeatureCache
from tests.contracts.formats.conftest import make, run_program


def test_threads_that_use_a_new_cache_at_once_all_read_it_whole(tmp_path, format_):
    _, rows, _ = make(tmp_path, tuple([300] * 4), format_, dim=64)
    cache = FeatureCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: cache[:], range(8)):
            np.testing.assert_array_equal(found, rows)
    assert not list(tmp_path.rglob("*.part"))


def test_processes_that_open_a_cache_at_once_all_read_it_whole(tmp_path, format_):
    cache, rows, _ = make(tmp_path, tuple([300] * 8), format_, dim=64)
    program = (
        "import sys; from dimefm.cache import FeatureCache;"
        " print(FeatureCache(sys.argv[1])[:].astype('f8').sum())"
    )
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    found = [float(reader.communicate()[0]) for reader in readers]
    assert found == [pytest.approx(rows.astype(np.float64).sum())] * 3
    assert not list(tmp_path.rglob("*.part"))
    np.testing.assert_array_equal(cache[:], rows)


FORK = """
import os, sys, threading
import numpy as np
from dimefm.cache import FeatureCache

cache = FeatureCache(sys.argv[1])
if sys.argv[2] == "used":
    cache[0]
held, forked = threading.Event(), threading.Event()

def hold():
    with cache._lock:
        held.set()
        forked.wait()

if sys.argv[2] == "locked":
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
child = os.fork()
if child == 0:
    rows = cache[:]
    os._exit(0 if rows.tobytes() == np.load(sys.argv[3]).tobytes() else 9)
forked.set()
assert cache[:].tobytes() == np.load(sys.argv[3]).tobytes()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.parametrize("state", ["new", "used", "locked"])
def test_after_a_fork_parent_and_child_read_the_same_rows(tmp_path, format_, state):
    _, rows, _ = make(tmp_path / "cache", tuple([50] * 6), format_)
    np.save(tmp_path / "rows.npy", rows)
    run_program(FORK, tmp_path / "cache", state, tmp_path / "rows.npy")


SPAWN = """
import multiprocessing, sys
from dimefm.cache import FeatureCache

def total(cache):
    return cache[:].astype("f8").sum()

if __name__ == "__main__":
    cache = FeatureCache(sys.argv[1])
    cache[0]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(set(pool.map(total, [cache] * 4)) == {total(cache)})
"""


def test_spawned_workers_read_the_same_rows(tmp_path, format_):
    make(tmp_path / "cache", (50, 3), format_)
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, tmp_path / "spawn.py", tmp_path / "cache"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]
