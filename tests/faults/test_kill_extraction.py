"""kill -9 at any line of the cache code: nothing that was finished is lost or done again, and the
next run ends with the bytes of an undisturbed one. A finished cache that is appended to or retried
stays whole at every moment.

The moments are drawn by line, not by time: the same seed dies at the same line on every machine.
"""

import json
import random
import shutil
import signal

import numpy as np
import pytest

from dimefm import plugins
from dimefm.cache import FeatureCache
from dimefm.errors import CacheError

FORMATS = plugins.names("caches")
SHARDS, ROWS = 8, 7
MODES = ("create-text", "create-image", "append", "retry", "retry-changed")
TEACHER = (
    "--teacher",
    "ResNet-mini-64/random:0",
    "--device",
    "cpu",
    "--workers",
    "1",
    "--batch-size",
    "4",
)


def extract(kind, sources, root, out, format_, *flags):
    return (
        "extract-features",
        *TEACHER,
        f"--{kind}s",
        *sources,
        "--dataroot",
        root,
        "--out",
        out,
        "--format",
        format_,
        *flags,
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory, picture):
    """Return a folder of texts/, changed/ (the same with its bad sentences mended), photos/ and
    mended/ (likewise).
    """
    top = tmp_path_factory.mktemp("raw")
    for i in range(SHARDS):
        sentences = [f"photo {j} of shard {i}" for j in range(ROWS)]
        write(top / f"changed/{i}.txt", "\n".join(sentences).encode())
        sentences[i % ROWS] = "" if i % 2 else sentences[i % ROWS]
        write(top / f"texts/{i}.txt", "\n".join(sentences).encode())
        for j in range(3):
            image = picture(3 * i + j)
            write(top / f"mended/{i}/{j}.png", image)
            write(top / f"photos/{i}/{j}.png", bytes(len(image)) if i % 2 and j == i % 3 else image)
    return top


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Scene:
    """A command, the state before it, and what it makes when nothing disturbs it."""

    def __init__(self, warm, raw, top, mode, format_, digests):
        self.warm, self.digests, self.before = warm, digests, top / "before"
        kind = "image" if mode in ("create-image", "retry") else "text"
        self.inner = f"{kind}s"
        data = top / "data"
        first = "photos" if kind == "image" else "texts"
        shutil.copytree(raw / first, data)
        every = sorted(path.name for path in data.iterdir())
        flags = {
            "append": ["--append"],
            "retry": ["--retry-bad"],
            "retry-changed": ["--retry-bad"],
        }.get(mode, [])
        if flags:
            begun = every[:3] if mode == "append" else every
            warm.done(*extract(kind, begun, data, self.before, format_))
        if mode.startswith("retry"):
            shutil.rmtree(data)
            shutil.copytree(raw / ("mended" if kind == "image" else "changed"), data)
        self.finished = bool(flags)
        self.arguments = lambda out: extract(kind, every, data, out, format_, *flags)
        self._undisturbed(top)

    def _undisturbed(self, top):
        self.fresh(top / "whole")
        self.warm.done(*self.arguments(top / "whole"), kill_at=0)
        self.lines, self.whole = self.warm.lines, self.digests(top / "whole")
        self.rows = [read(top / "whole" / self.inner, top / "flat")]
        if self.finished:
            self.rows.append(read(self.before / self.inner, top / "flat"))

    def fresh(self, out):
        shutil.rmtree(out, ignore_errors=True)
        if self.finished:
            shutil.copytree(self.before, out)


class Conversion(Scene):
    def __init__(self, warm, cache, top, format_, dtype, digests):
        self.warm, self.digests, self.finished, self.inner = warm, digests, False, "texts"
        more = ["--dtype", dtype] if dtype else []
        self.arguments = lambda out: (
            "cache",
            "convert",
            cache,
            out / "texts",
            "--format",
            format_,
            *more,
        )
        self._undisturbed(top)


def read(root, scratch):
    """Return (keys, rows) of a cache that must be whole."""
    cache = FeatureCache(root, scratch)
    cache.verify(sha256=True)
    parts = [cache.read(info) for info in cache.manifest.shards]
    return [key for keys, _ in parts for key in keys], np.concatenate([rows for _, rows in parts])


def finished(root):
    """Return shard file -> (inode, time of change) of the shards that are in the manifest or on
    record.
    """
    files = {json.loads(path.read_text())["file"] for path in root.glob(".partial/*.feat.*.json")}
    if (root / "manifest.json").exists():
        files |= {info.file for info in FeatureCache(root).manifest.shards}
    return {file: stamp(root / file) for file in files}


def stamp(path):
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def assert_survives(scene, out, seed, moments, top):
    """Kill the command at ``moments`` lines, each from a fresh start, some twice; the resumed one
    ends as if undisturbed.
    """
    draw = random.Random(seed)
    for moment in range(moments):
        scene.fresh(out)
        root = out / scene.inner
        untouched = finished(root)
        for again in range(1 + moment % 2):
            part = (moment + draw.random()) / moments if not again else draw.random()
            code, output = scene.warm(
                *scene.arguments(out), kill_at=max(1, int(part * scene.lines))
            )
            if code == 0 and again:  # the second run had fewer lines left
                break
            assert code == -signal.SIGKILL, output
            assert_holds(scene, root, top / "flat")
            kept = {file: found for file, found in finished(root).items() if file not in untouched}
            assert_untouched(root, untouched)
            assert len(committed(root) - kept.keys() - untouched.keys()) <= 1
            untouched |= kept
        scene.warm.done(*scene.arguments(out))
        assert scene.digests(out) == scene.whole, f"moment {moment} of seed {seed}"
        assert_untouched(root, untouched)
        assert not [
            path for path in out.rglob("*") if path.name == ".partial" or path.suffix == ".part"
        ]


def assert_untouched(root, before):
    """No finished shard was written again; one that a retry replaces is removed and not written
    to.
    """
    assert {
        file: stamp(root / file) for file in before if (root / file).exists()
    }.items() <= before.items()


def committed(root):
    """Return the shard files that are there under their own names."""
    suffixes = tuple(plugins.module("caches", name).SUFFIXES[-1] for name in FORMATS)
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.feat.*")
        if path.name.endswith(suffixes)
    }


def assert_holds(scene, root, scratch):
    """A cache is unfinished, or whole with the rows of before or after; it never was anything
    else.
    """
    if not scene.finished and not (root / "manifest.json").exists():
        with pytest.raises(CacheError, match="no manifest.json"):
            FeatureCache(root)
        return
    keys, rows = read(root, scratch)
    assert any(keys == expected and np.array_equal(rows, held) for expected, held in scene.rows)


def survive(scene, tmp_path, seed, moments):
    assert_survives(scene, tmp_path / "out", seed, moments, tmp_path)


@pytest.mark.parametrize(
    ("format_", "mode"), [(FORMATS[i % len(FORMATS)], mode) for i, mode in enumerate(MODES)]
)
def test_killed_anywhere_it_goes_on_and_ends_as_if_undisturbed(
    warm, raw, tmp_path, digests, format_, mode
):
    survive(Scene(warm, raw, tmp_path, mode, format_, digests), tmp_path, mode, 3)


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_killed_at_fifty_places_it_goes_on_and_ends_as_if_undisturbed(
    warm, raw, tmp_path, digests, format_, mode
):
    survive(Scene(warm, raw, tmp_path, mode, format_, digests), tmp_path, f"{mode} {format_}", 50)


def conversion(warm, raw, tmp_path, digests, from_, to, dtype):
    warm.done(*extract("text", ["."], raw / "texts", tmp_path / "old", from_))
    return Conversion(warm, tmp_path / "old/texts", tmp_path, to, dtype, digests)


def test_a_conversion_killed_anywhere_goes_on_and_ends_as_if_undisturbed(
    warm, raw, tmp_path, digests
):
    survive(
        conversion(warm, raw, tmp_path, digests, "hdf5", "parquet", "int8"), tmp_path, "convert", 3
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("to", FORMATS)
def test_a_conversion_killed_at_fifty_places_ends_as_if_undisturbed(
    warm, raw, tmp_path, digests, to, dtype
):
    from_ = FORMATS[(FORMATS.index(to) + 1) % len(FORMATS)]
    survive(
        conversion(warm, raw, tmp_path, digests, from_, to, dtype),
        tmp_path,
        f"convert {to} {dtype}",
        50,
    )


def test_appended_shards_are_those_of_a_cache_made_at_once(warm, raw, tmp_path, digests):
    for format_ in FORMATS:
        appended = Scene(warm, raw, tmp_path / f"a-{format_}", "append", format_, digests)
        at_once = Scene(warm, raw, tmp_path / f"b-{format_}", "create-text", format_, digests)
        assert appended.whole == at_once.whole


FLAT = """
import sys
from dimefm.cache import FeatureCache
FeatureCache({root!r})[:]
"""


@pytest.mark.parametrize("format_", FORMATS)
def test_killed_while_it_copies_for_random_access_the_next_reader_reads_the_same(
    warm, raw, tmp_path, digests, format_
):
    warm.done(*extract("text", ["."], raw / "texts", tmp_path / "old", format_))
    root, draw = tmp_path / "old/texts", random.Random(format_)
    program = FLAT.format(root=str(root))
    warm.done(program=program, kill_at=0)
    lines, whole, rows = warm.lines, digests(root), FeatureCache(root)[:]
    for moment in range(4):
        shutil.rmtree(root / ".flat", ignore_errors=True)
        code, output = warm(
            program=program, kill_at=max(1, int((moment + draw.random()) / 4 * lines))
        )
        assert code == -signal.SIGKILL, output
        np.testing.assert_array_equal(FeatureCache(root)[:], rows)
        assert FeatureCache(root).verify(sha256=True) == SHARDS
        assert whole.items() <= digests(root).items()


@pytest.mark.parametrize("format_", FORMATS)
def test_a_reader_removes_the_unfinished_copies_of_killed_ones(
    warm, raw, tmp_path, digests, format_
):
    warm.done(*extract("text", ["."], raw / "texts", tmp_path / "old", format_))
    root, program = tmp_path / "old/texts", FLAT.format(root=str(tmp_path / "old/texts"))
    warm.done(program=program, kill_at=0)
    whole, step = digests(root), max(1, warm.lines // 6)
    for line in range(step, warm.lines, step):
        shutil.rmtree(root / ".flat", ignore_errors=True)
        assert warm(program=program, kill_at=line)[0] == -signal.SIGKILL
        FeatureCache(root)[:]
        assert digests(root) == whole
