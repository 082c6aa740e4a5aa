"""Formats whose rows do not lie flat in the file are copied once for random access: sealed, and
made again when lost.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest, flat
from dimefm.errors import CacheError
from tests.contracts.formats.conftest import make


def flat_files(root):
    return sorted(path for path in root.rglob("*.flat*") if path.is_file())


def test_a_flat_copy_is_sealed_and_an_altered_one_is_found(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5, 3), format_)
    np.testing.assert_array_equal(cache[:], rows)
    copies = [path for path in flat_files(tmp_path) if path.suffix == ".flat"]
    assert len(copies) == (0 if cache.manifest.shards[0].offset is not None else 2)
    for path in copies:
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(
            CacheError, match=r"\.flat: not as its seal says. Fix: remove .* it is made again"
        ):
            FeatureCache(tmp_path).verify(sha256=True)
        path.write_bytes(whole[:-1])
        with pytest.raises(
            CacheError, match=r"bytes, expected .*. Fix: remove .* it is made again"
        ):
            FeatureCache(tmp_path)[:]
        path.unlink()
        path.with_name(f"{path.name}.sha256").unlink()
        np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
        assert path.read_bytes() == whole
    assert FeatureCache(tmp_path).verify(sha256=True) == 2


def test_a_flat_copy_without_its_seal_is_made_anew(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5, 3), format_)
    cache[:]
    for path in flat_files(tmp_path):
        if path.suffix == ".sha256":
            path.unlink()
        else:
            path.write_bytes(b"\xff" * path.stat().st_size)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
    shutil.rmtree(tmp_path / ".flat", ignore_errors=True)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)


def test_a_damaged_shard_is_not_copied_for_random_access(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5,), format_)
    shard = tmp_path / cache.manifest.shards[0].file
    whole = shard.read_bytes()
    if cache.manifest.shards[0].offset is None:
        shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(CacheError, match="SHA-256"):
            cache[:]
        shard.write_bytes(whole)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)


def test_flat_copies_go_to_the_scratch_folder_that_is_named(tmp_path, format_, digests):
    cache, rows, _ = make(tmp_path / "cache", (5, 3), format_)
    before = digests(tmp_path / "cache")
    for _ in range(2):
        np.testing.assert_array_equal(
            FeatureCache(tmp_path / "cache", tmp_path / "scratch")[:], rows
        )
    assert digests(tmp_path / "cache") == before
    assert len(flat_files(tmp_path / "scratch")) == (
        0 if cache.manifest.shards[0].offset is not None else 4
    )


def test_two_caches_may_share_a_scratch_folder(tmp_path, format_):
    made = [make(tmp_path / f"{seed}", (5, 3), format_, seed=seed)[:2] for seed in range(2)]
    for _ in range(2):
        for cache, rows in made:
            np.testing.assert_array_equal(FeatureCache(cache.root, tmp_path / "scratch")[:], rows)


def test_processes_that_want_the_same_copy_make_it_once(tmp_path, format_, monkeypatch):
    """Eight threads stand for the processes of a machine: each has opened the cache for itself."""
    cache, rows, _ = make(tmp_path, (50,), format_)
    written, once = [], flat._write

    def counted(*arguments):
        written.append(arguments)
        return once(*arguments)

    monkeypatch.setattr(flat, "_write", counted)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: FeatureCache(tmp_path)[:], range(8)))
    assert all(np.array_equal(each, rows) for each in found)
    assert len(written) == (0 if cache.manifest.shards[0].offset is not None else 1)
    assert {path.suffix for path in flat_files(tmp_path)} <= {".flat", ".sha256"}


def test_the_lock_of_a_process_that_was_killed_is_removed(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5,), format_)
    np.testing.assert_array_equal(cache[:], rows)
    locks = [
        path.with_name(path.name + ".making")
        for path in flat_files(tmp_path)
        if path.suffix == ".flat"
    ]
    for lock in locks:
        lock.touch()
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
    assert not [lock for lock in locks if lock.exists()]


def test_a_shard_of_any_name_is_copied(tmp_path, format_):
    rows = np.eye(3, 4, dtype=np.float32)
    header = Manifest(
        "text", format_, "float32", 4, False, EncoderCard("any", None, 4, 1.0), {}, {}
    )
    writer = CacheWriter(tmp_path, header, [("sätze/ä 1.txt", 3)])
    writer.write("sätze/ä 1.txt", ["a", "b", "c"], rows)
    writer.seal()
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
    assert FeatureCache(tmp_path).verify(sha256=True) == 1
