"""Files of a cache that are cut, changed or gone are found in every format, by the reader or by
``verify``.
"""

import errno
import os
import re

import numpy as np
import pyarrow as pa
import pytest

from dimefm.cache import FeatureCache
from dimefm.errors import CacheError
from tests.contracts.formats.conftest import make


def shard(cache):
    return cache.root / cache.manifest.shards[0].file


def test_cut_shard_is_named_on_verify_and_on_read(tmp_path, format_):
    cache, _, _ = make(tmp_path, (50, 3), format_)
    path = shard(cache)
    path.write_bytes(path.read_bytes()[:-7])
    for use in (lambda: FeatureCache(tmp_path).verify(), lambda: FeatureCache(tmp_path)[0]):
        with pytest.raises(CacheError, match=r"000\.feat.*bytes, the manifest says \d+"):
            use()
    assert len(FeatureCache(tmp_path)[50:]) == 3  # the other shard is still good


def test_one_changed_bit_is_found_by_verify(tmp_path, format_):
    cache, _, _ = make(tmp_path, (50,), format_)
    path = shard(cache)
    raw = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(0, len(raw), 20):
        changed = bytearray(raw)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(CacheError, match="SHA-256"):
            FeatureCache(tmp_path).verify(sha256=True)


def test_a_damaged_shard_of_the_right_size_is_a_cache_error_and_never_another(tmp_path, format_):
    cache, rows, _ = make(tmp_path / "cache", (20,), format_)
    path = shard(cache)
    raw = path.read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for attempt in range(60):
        changed = bytearray(raw)
        if attempt < 5:
            changed = bytearray(random.bytes(len(raw)))
        for place in random.integers(0, len(raw) if attempt % 2 else min(len(raw), 256), 8):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        opened = FeatureCache(tmp_path / "cache", scratch=tmp_path / f"scratch{attempt}")
        try:
            opened.read(opened.manifest.shards[0])
        except CacheError:
            refused += 1
        try:
            assert opened[:].shape == rows.shape
        except CacheError:
            refused += 1
    assert refused >= 10


def test_a_missing_or_changed_companion_is_found_by_verify(tmp_path, format_):
    cache, _, _ = make(tmp_path, (5,), format_)
    for suffix in cache.format.SUFFIXES[:-1]:
        companion = next(tmp_path.rglob(f"*{suffix}"))
        whole = companion.read_text()
        companion.write_text("0\n")
        with pytest.raises(CacheError, match="is not as recorded"):
            cache.verify(sha256=True)
        companion.unlink()
        with pytest.raises(CacheError, match="is missing"):
            cache.verify(sha256=True)
        companion.write_text(whole)
    assert cache.verify(sha256=True) == 1


def test_edited_manifest_is_refused(tmp_path, format_):
    make(tmp_path, (5,), format_)
    path = tmp_path / "manifest.json"
    path.write_text(
        path.read_text()
        .replace('"rows": 5', '"rows": 4')
        .replace('"source_rows": 5', '"source_rows": 4')
    )
    with pytest.raises(CacheError, match="edited"):
        FeatureCache(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', "\x00"])
def test_damaged_manifest_is_refused(tmp_path, text):
    make(tmp_path, (5,))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        FeatureCache(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.lib.ArrowMemoryError("malloc of size 64 failed"),
        OSError("out of memory"),
    ],
)
def test_a_lack_of_memory_is_no_damage(tmp_path, format_, monkeypatch, error):
    cache, _, _ = make(tmp_path, (6,), format_)

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(cache.format, "blocks", fails)
    with pytest.raises(type(error)) as raised:
        cache.read(cache.manifest.shards[0])
    assert raised.value is error


def test_arrow_without_memory_is_no_damage(tmp_path, monkeypatch):
    cache, _, _ = make(tmp_path, (6,), "parquet")

    def fails(*arguments, **options):
        raise pa.lib.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(cache.format, "_check", fails)
    with pytest.raises(MemoryError):
        cache.read(cache.manifest.shards[0])


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("use", ["read", "keys", "rows"])
def test_an_error_of_the_machine_is_no_damage(tmp_path, monkeypatch, code, use):
    make(tmp_path, (6,), "hdf5")
    cache = FeatureCache(tmp_path)

    def fails(*arguments, **options):
        raise OSError(code, os.strerror(code))

    for name in ("blocks", "keys"):
        monkeypatch.setattr(cache.format, name, fails)
    monkeypatch.setattr(cache._rows, "handle", fails, raising=False)
    uses = {
        "read": lambda: cache.read(cache.manifest.shards[0]),
        "keys": cache.keys,
        "rows": lambda: cache[0],
    }
    with pytest.raises(CacheError, match=f"cannot be read .{os.strerror(code)}") as error:
        uses[use]()
    line = str(error.value)
    assert ". Fix: " in line
    assert not re.search("damaged|remove|extract again", line)
