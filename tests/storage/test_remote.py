"""Local copies of remote files: fetched once, checked, whole or absent, and never outside the
folder for them.
"""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dimefm.errors import DataError
from dimefm.storage.remote import (
    fetch,
    filesystem,
    forget,
    is_url,
    local_path,
    scratch_folder,
    stat,
)

URL = "memory://bucket/deep/a.bin"


@pytest.fixture
def memory():
    """Return an empty filesystem in memory."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def downloads(monkeypatch, memory):
    """Return the list of paths that were downloaded; ``memory`` holds one file, URL."""
    memory.pipe("/bucket/deep/a.bin", b"first")
    seen, real = [], MemoryFileSystem.get_file

    def counted(self, rpath, lpath, **options):
        seen.append(rpath)
        time.sleep(0.02)
        return real(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    return seen


def break_downloads(monkeypatch, error):
    def broken(self, rpath, lpath, **options):
        Path(lpath).write_bytes(b"fi")
        if error is not None:
            raise error

    monkeypatch.setattr(MemoryFileSystem, "get_file", broken)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("s3://bucket/x.tar", True),
        ("memory://x", True),
        ("hdfs+x://y", True),
        ("C://x", False),
        ("/s3://x", False),
        ("x.tar", False),
        ("s3:/bucket", False),
        (Path("s3://bucket"), False),
        ("", False),
    ],
)
def test_a_url_is_told_from_a_path(text, answer):
    assert is_url(text) is answer


def test_copies_lie_where_the_user_or_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert scratch_folder(None) == tmp_path / "caches/dimefm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scratch_folder(None) == tmp_path / ".cache/dimefm"
    monkeypatch.chdir(tmp_path)
    assert scratch_folder("here") == tmp_path / "here"


def test_a_protocol_that_nobody_knows_is_answered_with_the_nearest():
    with pytest.raises(
        DataError, match=r"^memori://x: unknown protocol 'memori': did you mean 'memory'\?$"
    ):
        filesystem("memori://x")
    with pytest.raises(DataError, match="is a chain of URLs; expected a single one"):
        filesystem("zip://a.txt::memory://b.zip")


@pytest.mark.parametrize(
    ("protocol", "remedy"),
    [("s3", r"dimefm\[s3\]"), ("gs", r"dimefm\[gs\]"), ("box", "that it names")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch, protocol, remedy
):
    missing = {"class": "no_such_package_at_all.Store", "err": "Install boxfs to access it"}
    registry = sys.modules["fsspec.registry"]  # fsspec has a mapping of this name too
    monkeypatch.setitem(registry.known_implementations, protocol, missing)
    monkeypatch.delitem(registry._registry, protocol, raising=False)
    with pytest.raises(
        DataError,
        match=rf"^{protocol}://a: the package for {protocol}:// is missing .*boxfs.*. .*{remedy}",
    ):
        filesystem(f"{protocol}://a")


def test_a_file_is_fetched_once(downloads, tmp_path):
    copy = fetch(URL, tmp_path)
    assert copy == tmp_path / "memory/bucket/deep/a.bin" == local_path(URL, tmp_path)
    assert copy.read_bytes() == b"first"
    assert fetch(URL, tmp_path) == fetch(URL, tmp_path, stat(URL)) == copy
    assert len(downloads) == 1
    assert sorted(path.name for path in copy.parent.iterdir()) == [".a.bin.seal", "a.bin"]
    seal = json.loads((copy.parent / ".a.bin.seal").read_text())
    assert (seal["url"], seal["size"]) == (URL, 5) and seal["version"]


def test_a_file_that_changed_is_fetched_anew(downloads, memory, tmp_path):
    fetch(URL, tmp_path)
    memory.pipe("/bucket/deep/a.bin", b"other")  # of the same size
    assert fetch(URL, tmp_path).read_bytes() == b"other"
    assert len(downloads) == 2


@pytest.mark.parametrize("name", ["etag", "ETag", "md5Hash", "LastModified"])
def test_what_a_store_says_of_a_content_decides(downloads, tmp_path, name):
    for version, count in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        fetch(URL, tmp_path, {"type": "file", "size": 5, name: version})
        assert len(downloads) == count


@pytest.mark.parametrize("damage", ["cut", "grown", "removed", "seal cut", "seal removed"])
def test_a_copy_that_is_not_as_it_was_sealed_is_fetched_anew(downloads, tmp_path, damage):
    copy = fetch(URL, tmp_path)
    seal = copy.with_name(".a.bin.seal")
    if damage == "cut":
        copy.write_bytes(b"fir")
    elif damage == "grown":
        copy.write_bytes(b"first and more")
    elif damage == "seal cut":
        seal.write_text(seal.read_text()[:-4])
    else:
        (copy if damage == "removed" else seal).unlink()
    assert fetch(URL, tmp_path).read_bytes() == b"first"
    assert len(downloads) == 2


def test_a_store_that_does_not_know_sizes_is_believed(downloads, tmp_path):
    for _ in range(2):
        assert (
            fetch(URL, tmp_path, {"type": "file", "size": None, "etag": "x"}).read_bytes()
            == b"first"
        )
    assert len(downloads) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "a.bin: 2 bytes came of 5; it was cut short"),
        (
            ConnectionResetError("peer\nhung up"),
            r"^memory://bucket/deep/a.bin: cannot be read \(ConnectionResetError: peer\).",
        ),
        (
            RuntimeError(""),
            (
                r"\(RuntimeError: no reason given\). Fix: check the URL, the credentials and the"
                r" network"
            ),
        ),
        (
            OSError(28, "No space left on device"),
            "deep/a.bin: cannot be written .No space left on device.. .*--scratch",
        ),
    ],
)
def test_a_download_that_fails_leaves_nothing_that_is_used(
    downloads, memory, tmp_path, monkeypatch, error, reason
):
    old = fetch(URL, tmp_path)
    memory.pipe("/bucket/deep/a.bin", b"newer")
    with monkeypatch.context() as patch:
        break_downloads(patch, error)
        with pytest.raises(DataError, match=reason):
            fetch(URL, tmp_path)
    assert not [path for path in old.parent.iterdir() if path.suffix == ".part"]
    assert fetch(URL, tmp_path).read_bytes() == b"newer"


def test_what_is_missing_or_a_folder_is_no_file(downloads, tmp_path):
    with pytest.raises(
        DataError, match=r"^memory://bucket/none: no such file or folder. Fix: check the URL$"
    ):
        fetch("memory://bucket/none", tmp_path)
    with pytest.raises(DataError, match="bucket/deep: is a folder; expected a file"):
        fetch("memory://bucket/deep", tmp_path)
    assert stat("memory://bucket/none") is None
    assert stat("memory://bucket/deep")["type"] == "directory"


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a/./x", "a//x", "", "a/x\0y"])
def test_no_copy_lies_outside_its_folder(memory, tmp_path, path):
    with pytest.raises(DataError, match="expected a path without"):
        fetch(f"memory://{path}", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_for_copies_that_cannot_be_written_is_named(downloads, tmp_path):
    (tmp_path / "memory").write_text("a file where a folder should be")
    with pytest.raises(
        DataError,
        match=(
            r"memory/bucket/deep/a.bin: cannot be written .*. Fix: name another folder with"
            r" --scratch"
        ),
    ):
        fetch(URL, tmp_path)


def test_threads_that_want_one_file_wait_for_one_download(downloads, tmp_path):
    barrier = threading.Barrier(6)

    def ask(_):
        barrier.wait()
        return fetch(URL, tmp_path).read_bytes()

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(6))) == {b"first"}
    assert len(downloads) == 1


def test_processes_that_want_one_file_do_not_disturb_each_other(tmp_path):
    source = tmp_path / "far/a.bin"
    source.parent.mkdir()
    source.write_bytes(bytes(range(256)) * 20_000)
    ask = f"print(fetch('file://{source}', Path('{tmp_path}/near')))"
    code = f"from pathlib import Path; from dimefm.storage.remote import fetch; {ask}"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    copies = {process.communicate(timeout=600)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    (copy,) = copies
    assert Path(copy).read_bytes() == source.read_bytes()
    assert len(list(Path(copy).parent.iterdir())) == 2


def test_a_copy_that_is_forgotten_leaves_nothing(downloads, tmp_path):
    copy = fetch(URL, tmp_path)
    forget(copy)
    forget(copy)
    assert not list(copy.parent.iterdir())


@pytest.mark.parametrize("kept", ["time", "no time", "digest alone"])
def test_a_copy_that_was_changed_to_other_bytes_of_its_size_is_fetched_anew(
    downloads, tmp_path, kept
):
    copy = fetch(URL, tmp_path)
    stamp = copy.stat().st_mtime_ns
    copy.write_bytes(b"f!rst" if kept != "digest alone" else b"first")
    if kept == "time":
        os.utime(copy, ns=(stamp, stamp + 1))
    assert fetch(URL, tmp_path).read_bytes() == b"first"
    assert len(downloads) == (1 if kept == "digest alone" else 2)


def test_a_seal_of_before_is_still_good(downloads, tmp_path):
    copy = fetch(URL, tmp_path)
    path = copy.with_name(".a.bin.seal")
    seal = json.loads(path.read_text())
    path.write_text(json.dumps({name: seal[name] for name in ("url", "size", "version")}))
    fetch(URL, tmp_path)
    assert len(downloads) == 1


@pytest.mark.parametrize("planted", ["a.bin", ".a.bin.seal", ".a.bin.part", "folder"])
def test_nothing_is_written_through_a_link_that_somebody_planted(downloads, tmp_path, planted):
    victim = tmp_path / "home"
    victim.mkdir()
    (victim / "file").write_bytes(b"mine!")
    copy = local_path(URL, tmp_path / "scratch")
    if planted == "folder":
        copy.parent.parent.mkdir(parents=True)
        copy.parent.symlink_to(victim)
    else:
        copy.parent.mkdir(parents=True)
        (copy.parent / planted).symlink_to(victim / "file")
    try:
        assert fetch(URL, tmp_path / "scratch").read_bytes() == b"first"
    except DataError as error:
        assert "--scratch" in str(error)
    assert (victim / "file").read_bytes() == b"mine!"
    assert [path.name for path in victim.iterdir()] == ["file"]
