"""A disk that is full or read-only: one line and exit code 1, finished shards are kept, and after
making room the same command ends with the bytes of an undisturbed run.

Full means a tmpfs of a few pages where mounting is allowed, and everywhere a limit on the size of a
file.
"""

import os
import shutil
import subprocess

import pytest

from dimefm.cache import FeatureCache
from dimefm.errors import CacheError
from tests.faults.conftest import FORMATS, another, is_copied

COPIED = [name for name in FORMATS if is_copied(name)]
TEACHER = ("--teacher", "ResNet-mini-64/random:0", "--device", "cpu", "--batch-size", "16")
SHARDS, ROWS = 6, 30


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Return a folder of text shards of 30 rows; the last has 90."""
    folder = tmp_path_factory.mktemp("raw")
    for i in range(SHARDS):
        lines = [f"photo {j} of shard {i}" for j in range(ROWS * (3 if i == SHARDS - 1 else 1))]
        lines[i] = ""
        (folder / f"{i}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def undisturbed(warm, raw, tmp_path_factory):
    """Return format -> a cache that nothing disturbed."""
    made = {}

    def of(format_):
        if format_ not in made:
            made[format_] = tmp_path_factory.mktemp("whole") / "cache"
            warm.done(*extract(raw, made[format_], format_))
        return made[format_]

    return of


class Disk:
    """A tmpfs that can be made larger or read-only."""

    def __init__(self, folder, kilobytes):
        self.folder = folder
        folder.mkdir()
        done = mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))
        if done.returncode:
            pytest.skip(f"mounting is not permitted ({done.stderr.strip()})")

    def change(self, options):
        assert mount("-o", f"remount,{options}", str(self.folder)).returncode == 0


def mount(*arguments):
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path):
    """Return ``disk(kilobytes)``, a small disk of its own; skip where mounting is not permitted."""
    made = []

    def make(kilobytes):
        made.append(Disk(tmp_path / f"disk{len(made)}", kilobytes))
        return made[-1]

    yield make
    for each in made:
        subprocess.run(["umount", "-l", str(each.folder)], check=True)


def file_limit(root):
    """Return bytes that no small shard of a cache takes and that its large last one exceeds."""
    *small, large = (info.bytes for info in FeatureCache(root).manifest.shards)
    assert max(small) < 0.8 * large
    return (max(small) + large) // 2


def extract(raw, out, format_, *flags):
    return ("extract-features", *TEACHER, "--texts", raw, "--out", out, "--format", format_, *flags)


def stamps(root):
    """Return shard file -> (inode, time of change)."""
    return {
        path.relative_to(root): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in root.glob("*.feat.*")
    }


def finished(root):
    """Return the stamps of the files of shards on record."""
    records = {path.name.split(".feat.")[0] for path in root.glob(".partial/*.feat.*.json")}
    return {
        path: stamp
        for path, stamp in stamps(root).items()
        if path.name.split(".feat.")[0] in records
    }


def assert_stopped(error, root, why):
    """It ended with one line that says where and why, and kept some finished shards, but made no
    cache.
    """
    assert str(root) in error and why in error
    kept = finished(root)
    assert kept
    assert not list(root.glob("*.part"))
    with pytest.raises(CacheError, match="no manifest"):
        FeatureCache(root)
    return kept


@pytest.mark.parametrize("format_", FORMATS)
def test_an_extraction_that_fills_the_disk_goes_on_when_there_is_room(
    warm, raw, disk, undisturbed, digests, format_
):
    whole = digests(undisturbed(format_))
    pages = disk(60)
    out, before = pages.folder / "cache", {}
    for kilobytes in (60, 90):
        pages.change(f"size={kilobytes}k")
        kept = assert_stopped(
            warm.refused(*extract(raw, out, format_)), out / "texts", "No space left on device"
        )
        assert before.items() <= kept.items()
        before = kept
    pages.change("size=10m")
    assert "finished by an earlier run" in warm.done(*extract(raw, out, format_))
    assert before.items() <= stamps(out / "texts").items()
    assert digests(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_a_disk_of_any_size_ends_in_one_line_or_a_whole_cache(
    warm, raw, disk, undisturbed, digests, format_
):
    whole, pages, ended = digests(undisturbed(format_)), disk(4), set()
    for kilobytes in range(4, 400, 8):
        pages.change(f"size={kilobytes}k")
        out = pages.folder / "cache"
        code, output = warm(*extract(raw, out, format_))
        ended.add(code)
        if code == 0:
            assert digests(out) == whole
        else:
            assert code == 1 and "Traceback" not in output and output.count("Error: ") == 1, output
            pages.change("size=10m")
            warm.done(*extract(raw, out, format_))
            assert digests(out) == whole
        shutil.rmtree(out)
    assert ended == {0, 1}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_that_may_not_grow_stops_an_extraction_that_goes_on_later(
    warm, raw, tmp_path, undisturbed, digests, format_
):
    out = tmp_path / "cache"
    error = warm.refused(
        *extract(raw, out, format_), largest_file=file_limit(undisturbed(format_) / "texts")
    )
    kept = assert_stopped(error, out / "texts", "File too large")
    assert len({path.name.split(".feat.")[0] for path in kept}) == SHARDS - 1
    warm.done(*extract(raw, out, format_))
    assert kept.items() <= stamps(out / "texts").items()
    assert digests(out) == digests(undisturbed(format_))


@pytest.mark.parametrize("format_", FORMATS)
def test_a_conversion_that_fills_the_disk_goes_on_when_there_is_room(
    warm, disk, undisturbed, tmp_path, digests, format_
):
    old = undisturbed(another(format_)) / "texts"
    command = ("cache", "convert", old)
    warm.done(*command, tmp_path / "whole", "--format", format_)
    pages = disk(80)
    out = pages.folder / "new"
    kept = assert_stopped(
        warm.refused(*command, out, "--format", format_), out, "No space left on device"
    )
    pages.change("size=10m")
    warm.done(*command, out, "--format", format_)
    assert kept.items() <= stamps(out).items()
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_that_may_not_grow_stops_a_conversion_that_goes_on_later(
    warm, undisturbed, tmp_path, digests, format_
):
    command = (
        "cache",
        "convert",
        undisturbed(another(format_)) / "texts",
    )
    warm.done(*command, tmp_path / "whole", "--format", format_)
    out = tmp_path / "new"
    error = warm.refused(
        *command, out, "--format", format_, largest_file=file_limit(tmp_path / "whole")
    )
    kept = assert_stopped(error, out, "File too large")
    warm.done(*command, out, "--format", format_)
    assert kept.items() <= stamps(out).items()
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize("format_", COPIED)
def test_a_flat_copy_that_fills_the_disk_is_one_line_and_is_made_later(
    warm, disk, undisturbed, digests, format_
):
    old = undisturbed(format_) / "texts"
    whole = digests(old)
    pages = disk(24)
    compare = ("cache", "diff", old, old, "--scratch", pages.folder / "scratch")
    error = warm.refused(*compare)
    assert (
        "flat copy" in error and "No space left on device" in error and str(pages.folder) in error
    )
    assert not list(pages.folder.rglob("*.part"))
    pages.change("size=10m")
    assert "cosine at least 1.000000" in warm.done(*compare)
    assert digests(old) == whole


@pytest.mark.parametrize("format_", COPIED)
def test_a_flat_copy_that_may_not_grow_is_one_line_and_is_made_later(
    warm, undisturbed, tmp_path, format_
):
    old = undisturbed(format_) / "texts"
    compare = ("cache", "diff", old, old, "--scratch", tmp_path / "scratch")
    error = warm.refused(*compare, largest_file=20_000)
    assert "flat copy" in error and "File too large" in error and str(tmp_path / "scratch") in error
    assert len(list(tmp_path.rglob("*.flat"))) == SHARDS - 1 and not list(tmp_path.rglob("*.part"))
    assert "cosine at least 1.000000" in warm.done(*compare)


def test_a_read_only_disk_is_one_line_for_every_command_that_writes(warm, raw, disk, undisturbed):
    pages = disk(10_000)
    old = pages.folder / "old"
    for format_ in COPIED:
        shutil.copytree(undisturbed(format_), old / format_)
    pages.change("ro")
    out = pages.folder / "new"
    assert_refused_as_read_only(warm, raw, undisturbed, old, out, "Read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line_for_every_command_that_writes(
    warm, raw, undisturbed, tmp_path
):
    for format_ in COPIED:
        shutil.copytree(undisturbed(format_), tmp_path / "old" / format_)
    folders = [tmp_path / "old", *(path for path in (tmp_path / "old").rglob("*") if path.is_dir())]
    (tmp_path / "locked").mkdir()
    for folder in (*folders, tmp_path / "locked"):
        folder.chmod(0o555)
    try:
        assert_refused_as_read_only(
            warm, raw, undisturbed, tmp_path / "old", tmp_path / "locked/new", "Permission denied"
        )
    finally:
        for folder in (*folders, tmp_path / "locked"):
            folder.chmod(0o755)


def assert_refused_as_read_only(warm, raw, undisturbed, old, out, why):
    for error in (
        warm.refused(*extract(raw, out, "hdf5")),
        warm.refused("cache", "convert", undisturbed("hdf5") / "texts", out),
    ):
        assert str(out) in error and "cannot be written" in error and why in error
    for format_ in COPIED:
        cache = old / format_ / "texts"
        error = warm.refused("cache", "diff", cache, cache)
        assert "flat copy" in error and why in error and str(old) in error
        error = warm.refused(*extract(raw, old / format_, format_, "--retry-bad"))
        assert str(cache) in error and "cannot be written" in error and why in error
        assert "as recorded" in warm.done("cache", "verify", cache, "--sha256")


def test_a_finished_cache_on_a_read_only_disk_is_finished(warm, raw, disk, undisturbed):
    pages = disk(10_000)
    shutil.copytree(undisturbed("hdf5"), pages.folder / "old")
    pages.change("ro")
    assert "finished already" in warm.done(*extract(raw, pages.folder / "old", "hdf5"))
