"""A disk without locks: processes that could take one shard are refused, others do their part."""

import errno
import os
import threading

import pytest

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.errors import CacheError
from dimefm.extract.extract import extract
from dimefm.extract.sharding import ALL, Share, share_of
from dimefm.storage import files, locks
from dimefm.storage.stores import Store


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def without_locks(monkeypatch, request):
    """Let flock fail as on a network file system."""

    def fails(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks.fcntl, "flock", fails)


@pytest.fixture
def texts(tmp_path):
    for number in range(3):
        lines = [f"sentence {line} of shard {number}\n" for line in range(4)]
        (tmp_path / f"{number}.txt").write_text("".join(lines))
    return open_rows([str(tmp_path / "*.txt")], "text")


@pytest.mark.parametrize(
    "share", [ALL, share_of(None, 3), Share(rank=1, ranks=2), Share(0, 2, None, 0, 2)]
)
def test_processes_that_could_take_one_shard_are_refused(
    tmp_path, tiny_teacher, texts, without_locks, share
):
    with pytest.raises(CacheError, match="has no locks .flock.*--shard-range I/N .0/1 when"):
        extract(tiny_teacher, texts, "text", tmp_path / "cache", share=share)
    assert not (tmp_path / "cache").exists()


def test_parts_of_their_own_make_the_cache_of_one_process(
    tmp_path, tiny_teacher, texts, without_locks, digests
):
    for part in range(2):
        extract(tiny_teacher, texts, "text", tmp_path / "a", share=share_of(f"{part}/2", None))
    extract(tiny_teacher, texts, "text", tmp_path / "b", share=share_of("0/1", None))
    assert len(FeatureCache(tmp_path / "a")) == 12
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_processes_of_one_shard_write_files_of_their_own(tmp_path, monkeypatch):
    store = Store(tmp_path)
    parts = {store.part("a.h5")}
    thread = threading.Thread(target=lambda: parts.add(store.part("a.h5")))
    thread.start()
    thread.join()
    monkeypatch.setattr(files.os, "getpid", lambda: 4_000_000)
    parts.add(store.part("a.h5"))
    monkeypatch.setattr(files.socket, "gethostname", lambda: "another")
    files._host.cache_clear()
    parts.add(store.part("a.h5"))
    files._host.cache_clear()
    assert len(parts) == 4


def test_what_killed_processes_left_goes_and_what_living_ones_write_stays(tmp_path):
    dead, foreign = 4_194_305, f"{'0' * 8}.1.1.part"
    left = tmp_path / "x" / f"a.h5.{files._host()}.{dead}.5.part"
    living = files.part_of(tmp_path / "x" / "b.h5")
    other = tmp_path / "x" / f"c.h5.{foreign}"
    old = tmp_path / f"d.h5.{foreign}"
    strangers = [tmp_path / "download.part", tmp_path / "x" / "1.2.part"]
    (tmp_path / "x").mkdir()
    for path in (left, living, other, old, *strangers):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    files.remove_abandoned(tmp_path)
    assert not left.exists() and not old.exists()
    assert all(path.exists() for path in (living, other, *strangers))
