"""Caches at a URL: written, resumed, read, converted and refused like those in a folder."""

import fsspec
import numpy as np
import pytest

from dimefm import plugins
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.compare import compare
from dimefm.cache.convert import convert
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError, DimefmError

CARD = EncoderCard("test/card", "ab" * 32, 6, 100.0)
URL = "memory://bucket/caches/one"
SOURCES = [("part/0.tar", 4), ("part/1.tar", 0), ("part/2.tar", 6)]


@pytest.fixture(autouse=True)
def empty_store():
    """Give each test a store of its own: memory:// is one for the whole process."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.fixture(params=plugins.names("caches"))
def format_(request):
    return request.param


def vectors(n, seed):
    return np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)


def header(format_):
    return Manifest("image", format_, "float16", 6, False, CARD, {"decoder": "pil"}, {"numpy": "2"})


def write(root, format_, scratch, stop_after=None, **mode):
    """Write what is missing of the cache at ``root``; return the names of the shards written."""
    writer = CacheWriter(root, header(format_), SOURCES, scratch=scratch, **mode)
    written = []
    for number, (name, n) in enumerate(SOURCES):
        if name in writer:
            continue
        if number == stop_after:
            raise KeyboardInterrupt
        bad = [Bad(1, "k1", "is bad")] if n else []
        keys = [f"{name}-{i}" for i in range(n - len(bad))]
        writer.write(name, keys, vectors(len(keys), number), bad)
        written.append(name)
    writer.seal()
    return written


def test_a_remote_cache_holds_what_a_local_one_holds(format_, tmp_path):
    write(tmp_path / "local", format_, None)
    write(URL, format_, tmp_path / "scratch")
    ours, theirs = FeatureCache(tmp_path / "local"), FeatureCache(URL, tmp_path / "scratch")
    assert ours.manifest == theirs.manifest
    np.testing.assert_array_equal(ours[:], theirs[:])
    np.testing.assert_array_equal(ours[[7, 0, 7]], theirs[[7, 0, 7]])
    assert theirs.verify(sha256=True) == 3
    assert compare(ours, theirs).same
    files = {
        path.relative_to(tmp_path / "local").as_posix()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    stored = {
        name.removeprefix("/bucket/caches/one/")
        for name in fsspec.filesystem("memory").find("/bucket/caches/one")
    }
    assert stored == {name for name in files if not name.startswith(".flat/")}


def test_an_interrupted_remote_write_is_no_cache_and_goes_on(format_, tmp_path, empty_store):
    with pytest.raises(KeyboardInterrupt):
        write(URL, format_, tmp_path / "scratch", stop_after=2)
    with pytest.raises(CacheError, match="unfinished cache. Fix: run the same"):
        FeatureCache(URL, tmp_path / "scratch")
    assert write(URL, format_, tmp_path / "another-machine") == ["part/2.tar"]
    assert not [
        name for name in empty_store.find("/bucket") if ".partial" in name or name.endswith(".part")
    ]
    assert write(URL, format_, tmp_path / "scratch") == []


def test_a_cache_converts_from_one_store_to_another(format_, tmp_path):
    write(URL, format_, tmp_path / "scratch")
    remote = FeatureCache(URL, tmp_path / "scratch")
    for target in plugins.names("caches"):
        made = convert(remote, f"memory://bucket/as-{target}", target, scratch=tmp_path / "scratch")
        assert made.fingerprint == remote.manifest.fingerprint
        found = FeatureCache(f"memory://bucket/as-{target}", tmp_path / "scratch")
        np.testing.assert_array_equal(found[:], remote[:])
        assert found.store.read("quarantine.jsonl") == remote.store.read("quarantine.jsonl")


def test_a_shard_replaced_behind_the_manifest_is_refused(format_, tmp_path, empty_store):
    write(URL, format_, tmp_path / "scratch")
    cache = FeatureCache(URL, tmp_path / "scratch")
    assert cache[:].shape == (8, 6)
    name = f"/bucket/caches/one/{cache.manifest.shards[2].file}"
    raw = bytearray(empty_store.cat_file(name))
    raw[len(raw) // 2] ^= 1
    empty_store.pipe_file(name, bytes(raw))
    with pytest.raises(CacheError, match="SHA-256"):
        FeatureCache(URL, tmp_path / "scratch").verify(sha256=True)
    empty_store.pipe_file(name, bytes(raw[:-3]))
    with pytest.raises(CacheError, match="bytes, the manifest says"):
        FeatureCache(URL, tmp_path / "scratch")[7]
    empty_store.rm_file(name)
    with pytest.raises(CacheError, match="missing"):
        FeatureCache(URL, tmp_path / "scratch").verify()


def test_append_and_retry_work_at_a_url(format_, tmp_path, empty_store):
    write(URL, format_, tmp_path / "scratch")
    before = {
        name: empty_store.cat_file(name) for name in empty_store.find("/bucket") if ".feat." in name
    }
    more = [*SOURCES, ("part/3.tar", 2)]
    writer = CacheWriter(URL, header(format_), more, append=True, scratch=tmp_path / "scratch")
    writer.write("part/3.tar", ["x", "y"], vectors(2, 9))
    writer.seal()
    assert len(FeatureCache(URL, tmp_path / "scratch")) == 10
    assert all(empty_store.cat_file(name) == raw for name, raw in before.items())
    writer = CacheWriter(URL, header(format_), more, retry=True, scratch=tmp_path / "scratch")
    old = writer.replaced("part/0.tar")
    writer.write("part/0.tar", [f"part/0.tar-{i}" for i in range(4)], vectors(4, 0))
    writer.keep(writer.replaced("part/2.tar"))
    writer.seal()
    assert len(FeatureCache(URL, tmp_path / "scratch")) == 11
    assert not empty_store.exists(f"/bucket/caches/one/{old.file}")
    assert "part/0.tar" not in FeatureCache(URL, tmp_path / "scratch").store.read(
        "quarantine.jsonl"
    )


@pytest.mark.parametrize(
    "url", ["nosuch://bucket/cache", "memory://bucket/none", "memory://bucket/../up"]
)
def test_a_url_that_is_no_cache_is_one_line(url, tmp_path):
    with pytest.raises(DimefmError) as caught:
        FeatureCache(url, tmp_path)
    assert "\n" not in str(caught.value) and "bucket" in str(caught.value)
