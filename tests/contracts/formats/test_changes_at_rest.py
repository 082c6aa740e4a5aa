"""Shards that were changed after they were written are noticed when they are first opened."""

import itertools
import shutil

import h5py
import numpy as np
import pytest

from dimefm.cache import CacheWriter, FeatureCache, flat, reader
from dimefm.errors import CacheError
from dimefm.storage.files import sha256_file
from tests.contracts.formats.conftest import header, make, vectors


@pytest.fixture(params=["mapped", "read"])
def backend(request, monkeypatch):
    """Let the caches of a test be small ones, or large ones that are not mapped."""
    if request.param == "read":
        monkeypatch.setattr(reader, "MMAP_LIMIT", 0)
    return request.param


def alike(root, format_):
    """Return a cache of two shards of equal size and other keys."""
    writer = CacheWriter(root, header(format_, "float32"), [("a.txt", 6), ("b.txt", 6)])
    for seed, letter in enumerate("ab"):
        keys = [f"{letter}{number}" for number in range(6)]
        writer.write(f"{letter}.txt", keys, vectors(6, 4, seed))
    writer.seal()
    cache = FeatureCache(root)
    assert len({shard.bytes for shard in cache.manifest.shards}) == 1
    return cache


def swap(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def accesses(cache):
    """Return ways to read the cache's rows."""
    count = len(cache)
    return [
        lambda: cache[:],
        lambda: cache[0],
        lambda: cache[count - 1],
        lambda: cache[np.array([count - 1, 0])],
        lambda: cache[::2],
    ]


def assert_refused(root, match, ways=slice(None)):
    for number in range(len(accesses(FeatureCache(root))))[ways]:
        with pytest.raises(CacheError, match=match) as error:
            accesses(FeatureCache(root))[number]()
        assert "\n" not in str(error.value) and ". Fix: " in str(error.value)


def test_files_of_two_shards_that_were_exchanged_are_refused(tmp_path, format_, backend):
    cache = alike(tmp_path, format_)
    suffixes = cache.format.SUFFIXES
    names = [shard.file.removesuffix(suffixes[-1]) for shard in cache.manifest.shards]
    for suffix in suffixes:
        swap(*(tmp_path / f"{name}{suffix}" for name in names))
    assert_refused(tmp_path, "the manifest says|SHA-256")
    for suffix in suffixes:
        swap(*(tmp_path / f"{name}{suffix}" for name in names))
    assert len(FeatureCache(tmp_path)[:]) == 12


def test_flat_copies_that_were_exchanged_are_refused(tmp_path, format_):
    alike(tmp_path, format_)[:]
    copies = sorted((tmp_path / ".flat").glob("*.flat"))
    if not copies:
        pytest.skip("the format needs no copies")
    swap(*copies)
    assert_refused(tmp_path, "not as its seal says")


@pytest.mark.parametrize("dataset", ["row", "key"])
def test_two_rows_that_were_swapped_are_refused(tmp_path, backend, dataset):
    cache, rows, _ = make(tmp_path, (6, 6), "hdf5", "float32")
    shard = tmp_path / cache.manifest.shards[1].file
    shutil.copy(shard, tmp_path / "whole")
    with h5py.File(shard, "r+") as file:
        values = file[dataset][:]
        values[[1, 4]] = values[[4, 1]]
        file[dataset][:] = values
    if backend == "read" and dataset == "row":
        with pytest.raises(CacheError):  # only a full check reads all bytes of a large cache
            FeatureCache(tmp_path).verify(sha256=True)
    else:
        assert_refused(tmp_path, cache.manifest.shards[1].file, slice(2, None))
    FeatureCache(tmp_path)[0]
    shutil.copy(tmp_path / "whole", shard)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_row_that_became_useless_is_named(tmp_path, value):
    cache, _, _ = make(tmp_path, (6,), "hdf5", "float32")
    with h5py.File(tmp_path / cache.manifest.shards[0].file, "r+") as file:
        file["row"][3] = value
    assert_refused(tmp_path, "row 3: the vector has length (nan|inf|0.0)")


def test_a_shard_is_compared_once_however_often_it_is_opened(tmp_path, backend, monkeypatch):
    cache, rows, _ = make(tmp_path, (6, 6, 6), "hdf5", "float32")
    cache = FeatureCache(tmp_path)
    monkeypatch.setattr(cache._rows, "most_open", 1, raising=False)
    compared = []
    check = cache._check_content
    monkeypatch.setattr(
        cache, "_check_content", lambda info, path: (compared.append(info), check(info, path))
    )
    for number in itertools.chain(range(18), range(18)):
        np.testing.assert_array_equal(cache[number], rows[number])
    assert len(compared) == 3


def test_verify_hashes_a_shard_once(tmp_path, format_, backend, monkeypatch):
    cache, _, _ = make(tmp_path, (6, 6), format_, "float32")
    cache[:]
    hashed = []

    def counted(path):
        hashed.append(path.name)
        return sha256_file(path)

    for module in (reader, flat):
        monkeypatch.setattr(module, "sha256_file", counted)
    FeatureCache(tmp_path).verify(sha256=True)
    shards = [shard for shard in hashed if shard.endswith((cache.format.SUFFIXES[-1], ".flat"))]
    assert len(shards) == len(set(shards)) >= 2


def test_keys_are_read_without_the_rows_and_compared(tmp_path, monkeypatch):
    cache = alike(tmp_path, "hdf5")

    def blocks(path, shape, dtype):
        raise AssertionError("the rows are read")

    monkeypatch.setattr(cache.format, "blocks", blocks)
    keys = [f"{letter}{number}" for letter in "ab" for number in range(6)]
    assert cache.keys() == keys
    assert cache.keys([7, 2, 2]) == ["b1", "a2", "a2"]
    swap(*(tmp_path / shard.file for shard in cache.manifest.shards))
    with pytest.raises(CacheError, match="holds 6 rows with keys"):
        cache.keys()
