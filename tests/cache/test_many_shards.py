"""Work that grows in proportion to the number of shards: calls are counted, not seconds."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.compare import compare
from dimefm.cache.quarantine import quarantined
from dimefm.cache.writer import Bad
from dimefm.data import open_rows
from dimefm.data.alignment import align, align_caches
from dimefm.data.matching import NameIndex, same_name
from dimefm.data.sources import shard_names

FEW = 40
MANY = 160
MOST_GROWTH = 5.5  # of calls, for four times the shards; quadratic work makes it 16

HEADER = Manifest("text", "hdf5", "float16", 4, True, EncoderCard("x", None, 4, 100.0), {}, {})


def source(number):
    return f"{number % 7}/{number:05d}.txt"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return number of shards -> (folder of raw texts, folder of their cache)."""
    folders = {}
    for count in (FEW, MANY):
        root = tmp_path_factory.mktemp(f"shards{count}")
        for number in range(count):
            path = root / "raw" / source(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"a {number}\n\nb {number}\n")
        rows = open_rows([root / "raw/*/*.txt"], "text", dataroot=root / "raw")
        writer = new_writer(root / "cache", rows)
        for number, shard in enumerate(rows.shards):
            vectors = np.full((2, 4), 0.5, np.float16)
            writer.write(shard.name, ["0", "2"], vectors, [Bad(1, "1", f"empty {number}")])
        writer.seal()
        folders[count] = root
    return folders


def new_writer(out, rows, **mode):
    sources = [(shard.name, len(shard)) for shard in rows.shards]
    digests = {shard.name: shard.digest() for shard in rows.shards}
    return CacheWriter(out, HEADER, sources, digests, **mode)


def calls(function, *arguments):
    """Return how many functions, of Python and of C, a call calls."""
    count = 0

    def count_call(frame, event, argument):
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(count_call)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


def open_sources(root):
    open_rows([root / "raw/*/*.txt"], "text", dataroot=root / "raw")


def match(root):
    rows = open_rows([root / "raw/*/*.txt"], "text", dataroot=root / "raw")
    aligned = align(rows, FeatureCache(root / "cache"))
    assert len(aligned) == 2 * len(rows.shards)
    aligned.locate(np.arange(len(aligned)))


def match_from_another_root(root):
    rows = open_rows([root / "raw/*/*.txt"], "text", dataroot=root)
    assert rows.shards[0].name.startswith("raw/")
    align(rows, FeatureCache(root / "cache"))


def match_caches(root):
    align_caches(FeatureCache(root / "cache"), FeatureCache(root / "cache"))


def verify(root):
    FeatureCache(root / "cache").verify()


def describe(root):
    Manifest.read(root / "cache").describe()


def diff(root):
    compare(FeatureCache(root / "cache"), FeatureCache(root / "cache"))


def list_quarantine(root):
    cache = FeatureCache(root / "cache")
    assert len(list(quarantined(cache.store, cache.manifest))) == len(cache.manifest.shards)


def resume_finished(root):
    rows = open_rows([root / "raw/*/*.txt"], "text", dataroot=root / "raw")
    assert new_writer(root / "cache", rows).finished is not None


def retry(root):
    rows = open_rows([root / "raw/*/*.txt"], "text", dataroot=root / "raw")
    writer = new_writer(root / "cache", rows, retry=True)
    for shard in rows.shards:
        with writer.claim(shard.name):
            assert writer.replaced(shard.name).source == shard.name
    writer.quarantined()
    writer.forget()


STEPS = [
    open_sources,
    match,
    match_from_another_root,
    match_caches,
    verify,
    describe,
    diff,
    list_quarantine,
    resume_finished,
    retry,
]


@pytest.mark.parametrize("step", STEPS)
def test_calls_grow_no_faster_than_shards(made, step):
    step(made[FEW])  # what is imported and read once
    few = calls(step, made[FEW])
    many = calls(step, made[MANY])
    assert many < MOST_GROWTH * few, f"{few} calls of {FEW} shards, {many} of {MANY}"


def test_a_written_shard_costs_the_same_among_few_and_many(made, tmp_path):
    counts = []
    for count in (FEW, MANY):
        rows = open_rows([made[count] / "raw/*/*.txt"], "text", dataroot=made[count] / "raw")
        writer = new_writer(tmp_path / str(count), rows)

        def write_one(writer=writer, name=rows.shards[0].name):
            with writer.claim(name):
                writer.write(name, ["0", "1", "2"], np.full((3, 4), 0.5, np.float16))

        counts.append(calls(write_one))
    assert counts[1] < 1.2 * counts[0]


def test_many_shards_of_one_name_are_told_apart_by_their_folders():
    """Every name ends alike, as in ``part-0/data.txt``, ``part-1/data.txt``."""
    sources = [f"part-{number}/data.txt" for number in range(5000)]
    index = NameIndex(sources)
    few = calls(index.similar, "photos/part-7/data.txt")
    assert index.similar("photos/part-7/data.txt") == [7] and few < 60
    assert index.similar("data.txt") == list(range(5000))


NAMES = ["a", "b/a", "c/b/a", "b", "c/b", "xa", "b/xa", "a/b", "a.b/a", "b!/a", "", "b//a", "é/a"]


@pytest.mark.parametrize("name", NAMES)
def test_the_index_of_names_says_what_a_comparison_of_each_says(name):
    expected = [number for number, other in enumerate(NAMES) if same_name(name, other)]
    assert NameIndex(NAMES).similar(name) == expected


def test_a_name_that_is_taken_by_another_shard_does_not_hide_the_one_with_the_keys(tmp_path):
    """From another data root, x/a.txt of the cache may be called a.txt, like another shard."""
    keys = {"a.txt": ["k"], "x/a.txt": ["0"]}
    writer = CacheWriter(tmp_path / "cache", HEADER, [(name, 1) for name in keys])
    for name, shard_keys in keys.items():
        writer.write(name, shard_keys, np.full((1, 4), 0.5, np.float16))
    writer.seal()
    (tmp_path / "a.txt").write_text("one\n")
    rows = open_rows([tmp_path / "a.txt"], "text", dataroot=tmp_path)
    aligned = align(rows, FeatureCache(tmp_path / "cache"))
    assert aligned.columns[0].starts.tolist() == [1]


def test_shards_are_named_by_one_look_at_each():
    """A list of folders that is searched for every shard takes minutes at this number."""
    paths = [Path(f"/data/part-{number}/a.tar") for number in range(20_000)]
    start = time.monotonic()
    names = shard_names(paths, Path("/other"))
    assert names[-1] == "part-19999/a.tar" and time.monotonic() - start < 60
