"""Caches too large to be mapped, of more shards than may be open, or of long keys: the same rows,
in bounded memory.
"""

import pickle
import weakref
from pathlib import Path

import numpy as np
import pytest

from dimefm.cache import CacheWriter, FeatureCache, reader, shard_rows
from dimefm.cache.shard_rows import MappedRows, PreadRows, PreadShard
from tests.contracts.formats.conftest import header, make, run_program


def test_a_cache_too_large_to_be_mapped_gives_the_same_rows(tmp_path, format_, monkeypatch):
    cache, rows, _ = make(tmp_path, (700, 0, 300), format_, dim=64)
    mapped, read = [], shard_rows.mmap.mmap
    monkeypatch.setattr(
        shard_rows.mmap,
        "mmap",
        lambda *given, **named: mapped.append(given) or read(*given, **named),
    )
    monkeypatch.setattr(reader, "MMAP_LIMIT", rows.nbytes - 1)
    large = FeatureCache(tmp_path)
    draw = np.random.default_rng(0)
    for _ in range(20):
        wanted = draw.integers(0, len(rows), 40)
        np.testing.assert_array_equal(large[wanted], rows[wanted])
    for piece in (slice(None), slice(690, 710), slice(None, None, -7), slice(5, 5)):
        np.testing.assert_array_equal(large[piece], rows[piece])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(large))[[999, 0]], rows[[999, 0]])
    assert large.verify(sha256=True) == 3 and not mapped
    monkeypatch.setattr(reader, "MMAP_LIMIT", rows.nbytes)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
    assert mapped


MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not list what a process maps")
def test_blocks_never_map_the_shard(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (20_000,), format_)
    path = tmp_path / cache.manifest.shards[0].file
    blocks = cache.format.blocks(path, rows.shape, cache.manifest.dtype)
    sizes = []
    for _, part in blocks:
        assert str(path) not in MAPS.read_text()
        sizes.append(len(part))
    assert sum(sizes) == 20_000 and len(sizes) > 1


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_more_shards_than_may_be_open_at_once_are_read(tmp_path, format_, monkeypatch, resident):
    _, rows, _ = make(tmp_path, tuple([3] * 20), format_)
    monkeypatch.setattr(reader, "MMAP_LIMIT", resident)
    for backend in (MappedRows, PreadRows):
        monkeypatch.setattr(backend, "most_open", 4)
    cache, draw = FeatureCache(tmp_path), np.random.default_rng(0)
    kept = cache[:2]
    for _ in range(10):
        wanted = draw.permutation(len(rows))
        np.testing.assert_array_equal(cache[wanted], rows[wanted])
        np.testing.assert_array_equal(cache[:], rows)
    np.testing.assert_array_equal(kept, rows[:2])


def test_one_gather_over_a_large_cache_opens_no_more_shards_than_may_be_open(
    tmp_path, format_, monkeypatch
):
    monkeypatch.setattr(reader, "MMAP_LIMIT", 0)
    monkeypatch.setattr(PreadRows, "most_open", 3)
    made, rows, _ = make(tmp_path, tuple([2] * 24), format_)
    alive = []

    class Watched(PreadShard):
        def __init__(self, *args):
            super().__init__(*args)
            alive.append(weakref.ref(self))

        def read(self, start, out):
            assert sum(each() is not None for each in alive) <= 4
            super().read(start, out)

    monkeypatch.setattr(PreadRows, "handle", Watched)
    wanted = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(FeatureCache(tmp_path)[wanted], rows[wanted])
    assert len(alive) == 24


PEAK = """
def peak():
    import resource, sys
    try:
        with open("/proc/self/status") as file:  # of this program alone, not of what started it
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
    except FileNotFoundError:
        unit = 1024 if sys.platform != "darwin" else 1 << 20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
"""
OPEN = f"""
import sys
from dimefm.cache import FeatureCache
{PEAK}
before = peak()
cache = FeatureCache(sys.argv[1])
assert len(cache) == 100_000_000
assert cache.locate(99_999_999)[1] == 9_999
print(peak() - before)
"""


def test_a_cache_of_a_hundred_million_rows_opens_in_a_hundred_megabytes(tmp_path, format_):
    info = make(tmp_path, (3,), format_)[0].manifest.shards[0]
    fields = {
        **info.__dict__,
        "source_rows": 10_003,
        "rows": 10_000,
        "bad": (7, 8, 5000),
        "bytes": 5_000_000,
    }
    shards = [
        type(info)(**{**fields, "file": f"p/{i:05d}.feat.x", "source": f"p/{i:05d}.tar"})
        for i in range(10_000)
    ]
    (tmp_path / "manifest.json").write_text(header(format_, shards=tuple(shards)).to_json())
    assert int(run_program(OPEN, tmp_path)) < 100


LONG = f"""
import sys
import numpy as np
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
{PEAK}
card = EncoderCard("test/card", None, 1, 100.0)
n = 20_000
manifest = Manifest("text", sys.argv[2], "float16", 1, False, card, {{}}, {{}})
writer = CacheWriter(sys.argv[1], manifest, [("a.txt", n)])
keys = ["k" * 20_000, *map(str, range(n - 1))]
writer.write("a.txt", keys, np.ones((n, 1), np.float16))
writer.seal()
cache = FeatureCache(sys.argv[1])
assert [key for part, _ in cache.blocks(cache.manifest.shards[0]) for key in part] == keys
print(peak())
"""


def test_one_long_key_does_not_make_all_others_as_long_in_memory(tmp_path, format_):
    assert int(run_program(LONG, tmp_path, format_)) < 300


@pytest.mark.slow
def test_millions_of_rows_make_the_round_trip(tmp_path, format_):
    n, dim = (3_000_000, 8) if format_ != "tsv" else (1_000_000, 8)
    rows = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float16)
    writer = CacheWriter(tmp_path, header(format_, dim=dim), [("a.tar", n)])
    writer.write("a.tar", [f"{i}" for i in range(n)], rows)
    writer.seal()
    cache = FeatureCache(tmp_path)
    assert np.array_equal(cache[:], rows)
    wanted = np.random.default_rng(1).integers(0, n, 100_000)
    assert np.array_equal(cache[wanted], rows[wanted])
    start = 0
    for keys, found in cache.blocks(cache.manifest.shards[0]):
        assert keys[0] == str(start) and np.array_equal(found, rows[start : start + len(found)])
        start += len(found)
    assert start == n and cache.verify(sha256=True) == 1
