"""Files that become shorter while they are read: an error names the file, nothing ends silently."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dimefm import plugins
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache import reader as reader_module
from dimefm.curate.neighbours import Rule, build
from dimefm.errors import CacheError

DIM = 512
ROWS = 300
READS = {
    "one row": lambda cache: cache[ROWS - 1],
    "a range": lambda cache: cache[2 : ROWS - 1],
    "rows of one shard": lambda cache: cache[[ROWS - 1, 5, ROWS - 1]],
    "rows of two shards": lambda cache: cache[[ROWS + 5, ROWS - 1, 5]],
}


@pytest.fixture(params=plugins.names("caches"))
def cache(request, tmp_path):
    """Return an opened cache of two shards, both of which were read."""
    card = EncoderCard("x", None, DIM, 100.0)
    header = Manifest("image", request.param, "float32", DIM, False, card, {}, {})
    writer = CacheWriter(tmp_path / "cache", header, [("a.tar", ROWS), ("b.tar", ROWS)])
    rows = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    for source in ("a.tar", "b.tar"):
        writer.write(source, [str(row) for row in range(ROWS)], rows)
    writer.seal()
    opened = FeatureCache(tmp_path / "cache")
    opened[[0, ROWS]]
    return opened


def read_file(cache):
    """Return the file that the rows of the first shard are read from."""
    flat = sorted(cache.root.glob(".flat/a*.flat"))
    return flat[0] if flat else cache.root / cache.manifest.shards[0].file


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize("read", READS)
def test_rows_of_a_file_that_was_cut_short_are_an_error(cache, read, mapped, monkeypatch):
    if not mapped:
        monkeypatch.setattr(reader_module, "MMAP_LIMIT", 0)
        cache = FeatureCache(cache.root)
        cache[[0, ROWS]]
    path = read_file(cache)
    whole = path.read_bytes()
    os.truncate(path, 5000)
    with pytest.raises(CacheError, match="cut short") as refused:
        READS[read](cache)
    assert str(path) in str(refused.value) and ". Fix: " in str(refused.value)

    path.write_bytes(whole)
    READS[read](cache)


def test_neighbours_that_were_cut_short_are_an_error(tmp_path):
    card = EncoderCard("x", None, 4, 100.0)
    header = Manifest("image", "hdf5", "float32", 4, False, card, {}, {})
    writer = CacheWriter(tmp_path / "cache", header, [("a.tar", 3000)])
    rows = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    writer.write("a.tar", [str(row) for row in range(3000)], rows)
    writer.seal()
    graph = build(FeatureCache(tmp_path / "cache"), tmp_path / "graph", Rule(k=4))
    graph.draw([2999], [0], (0, 4))
    os.truncate(tmp_path / "graph/ids.npy", 200)
    with pytest.raises(CacheError, match=r"ids\.npy: 200 bytes.*cut short"):
        graph.draw([2999], [0], (0, 4))


PROGRAM = """
import os, sys, threading
import numpy as np
from dimefm.runtime.bus_errors import explain_bus_errors

explain_bus_errors()
path, how = sys.argv[1:]
np.zeros(1 << 20, np.uint8).tofile(path)
rows = np.memmap(path, dtype=np.uint8, mode="r")
os.truncate(path, 4096)
if how == "take":
    np.take(rows.reshape(1024, 1024), [1, 900], axis=0)
elif how == "thread":
    thread = threading.Thread(target=rows.tobytes)
    thread.start()
    thread.join()
elif how == "join":
    bytearray().join([memoryview(rows)[100_000:200_000]])
elif how == "kill":
    os.kill(os.getpid(), 7)
print("went on")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the line is printed on Linux only")
@pytest.mark.parametrize("how", ["take", "thread", "join", "kill"])
def test_a_map_that_is_cut_short_during_the_copy_ends_in_one_line(tmp_path, how):
    """A signal that somebody sends keeps its effect."""
    path = tmp_path / "a b.bin"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), how],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    if how == "kill":
        assert done.returncode == -7
        return
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"Error: {path}: was cut short")
