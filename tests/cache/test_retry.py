"""Quarantined rows of a finished cache are tried again: those that are mended take their place,
nothing else changes.
"""

import random

import numpy as np
import pytest

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.formats import BLOCK
from dimefm.cache.row_buffer import RowBuffer
from dimefm.cache.writer import Bad
from dimefm.data.formats.text import TextShard
from dimefm.errors import BadRow
from dimefm.extract.shard_writer import merge_retried
from dimefm.storage.stores import Store
from tests.cache.growing import ALL, ROWS, assert_adds_up, bad_rows, damaged, named, run, stamps


def test_rows_that_were_mended_take_their_place_and_nothing_else_changes(
    tiny_teacher, raw, tmp_path, format_, dtype, wide
):
    settings = {"format": format_, "dtype": dtype}
    damaged(raw)
    _, old = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", **settings)
    assert [(name.split(".")[0], row) for name, row in bad_rows(old)] == ALL
    before, kept = stamps(old), named(old)
    untouched = {file: stamp for file, stamp in before.items() if file.startswith("b")}
    damaged(raw, mended=ALL)
    report, new = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", "retry", **settings)
    assert (report.tried, report.recovered) == (7, 7) and bad_rows(new) == []
    assert untouched.items() <= stamps(new).items() and untouched
    found = named(new)
    assert len(found) == sum(ROWS.values())
    assert [info.rows for info in new.manifest.shards] == list(ROWS.values())
    if (
        raw.source == "folder"
    ):  # its digest is of names and sizes: only the bad rows are encoded again
        assert kept.items() <= found.items() and report.rows_done == 7
    else:
        assert {place: key for place, (key, _) in kept.items()}.items() <= {
            p: key for p, (key, _) in found.items()
        }.items()
    assert_adds_up(new)
    _, whole = run(
        tiny_teacher, raw.rows(), raw.kind, tmp_path / "whole", **settings | {"format": "hdf5"}
    )
    assert [key for key, _ in named(whole).values()] == [key for key, _ in found.values()]
    tolerance = {"int8": 0.05, "float16": 2e-3, "float32": 1e-5}[dtype]
    np.testing.assert_allclose(new[:], whole[:], atol=tolerance)
    if dtype != "int8":
        assert new.manifest.fingerprint == whole.manifest.fingerprint


class Flaky:
    """Makes rows of text shards unreadable for as long as they are listed."""

    def __init__(self, monkeypatch, rows):
        self.rows, read = set(rows), TextShard.__getitem__

        def get(shard, index):
            if (shard.name.split(".")[0], index) in self.rows:
                raise BadRow("the disk did not answer")
            return read(shard, index)

        monkeypatch.setattr(TextShard, "__getitem__", get)


def test_rows_that_failed_for_a_while_are_recovered_bit_for_bit(
    tiny_teacher, texts, tmp_path, monkeypatch, format_, dtype, wide
):
    settings = {"format": format_, "dtype": dtype}
    for name, n in ROWS.items():
        texts.shard(name, n)
    _, whole = run(tiny_teacher, texts.rows(), "text", tmp_path / "whole", **settings, batch_size=1)
    flaky = Flaky(monkeypatch, ALL)
    _, old = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", **settings, batch_size=1)
    before, kept = stamps(old), named(old)
    draw, left = random.Random(0), list(ALL)
    while left:
        mended = draw.sample(left, min(len(left), 3))
        left = [place for place in left if place not in mended]
        flaky.rows = set(left)
        report, new = run(
            tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry", **settings, batch_size=1
        )
        assert report.recovered == len(mended)
        assert [(name.split(".")[0], row) for name, row in bad_rows(new)] == left
        assert kept.items() <= named(new).items()
        kept = named(new)
        assert {
            file: stamp for file, stamp in before.items() if file.startswith("b")
        }.items() <= stamps(new).items()
        assert_adds_up(new)
    if dtype != "int8":  # its code was fitted without these rows
        assert named(new) == named(whole)
        assert new.manifest.fingerprint == whole.manifest.fingerprint
    assert [key for key, _ in named(new).values()] == [key for key, _ in named(whole).values()]
    report, _ = run(
        tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry", **settings, batch_size=1
    )
    assert report.already_finished


def test_rows_that_are_still_bad_stay_listed_and_no_file_is_written_again(
    tiny_teacher, raw, tmp_path, format_
):
    damaged(raw)
    _, old = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", format=format_)
    before, listed = stamps(old), (tmp_path / "out/quarantine.jsonl").read_bytes()
    report, new = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", "retry", format=format_)
    assert (report.tried, report.recovered) == (7, 0)
    assert stamps(new) == before and (tmp_path / "out/quarantine.jsonl").read_bytes() == listed
    assert_adds_up(new)


def test_a_cache_without_quarantined_rows_has_nothing_to_retry(
    tiny_teacher, texts, tmp_path, digests
):
    texts.shard("a", 3)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    before = digests(tmp_path / "out")
    report, _ = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry")
    assert report.already_finished and digests(tmp_path / "out") == before


@pytest.mark.parametrize("pattern", range(12))
def test_any_pattern_of_bad_rows_is_filled_in_the_right_places(
    tiny_teacher, texts, tmp_path, monkeypatch, pattern
):
    draw, n = random.Random(pattern), 12
    texts.shard("a", n)
    first = sorted(draw.sample(range(n), draw.choice((1, 3, 11, 12 - (pattern % 2)))))
    second = sorted(draw.sample(first, draw.randrange(len(first))))
    flaky = Flaky(monkeypatch, [*(("a", row) for row in first), ("b", 0)])
    texts.shard("b", 2)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    flaky.rows = {("a", row) for row in second}
    _, cache = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry")
    assert bad_rows(cache) == [("a.txt", row) for row in second]
    good = [row for row in range(n) if row not in second]
    tokens, _ = tiny_teacher.tokenize(
        [f"photo {row} of a" for row in good] + ["photo 0 of b", "photo 1 of b"]
    )
    np.testing.assert_allclose(cache[:], tiny_teacher.encode_text(tokens).numpy(), atol=2e-3)
    assert cache.read(cache.manifest.shards[0])[0] == list(map(str, good))
    assert_adds_up(cache)


def test_bad_rows_around_the_blocks_of_a_large_shard_are_filled_in_the_right_places(
    tmp_path, format_, monkeypatch
):
    n = 2 * BLOCK + 7
    bad = np.array([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK, n - 2, n - 1])
    rows = np.arange(n, dtype=np.float32)[:, None]
    card = EncoderCard("test", None, 1, 100.0)
    header = Manifest("text", format_, "float32", 1, False, card, {}, {})
    good = np.setdiff1d(np.arange(n), bad)
    writer = CacheWriter(tmp_path / "out", header, [("a", n)])
    writer.write(
        "a", list(map(str, good)), rows[good], [Bad(int(row), str(row), "torn") for row in bad]
    )
    writer.seal()
    cache = FeatureCache(tmp_path / "out")
    for mended in (bad, bad[::2], bad[-1:], bad[:1]):
        with RowBuffer(tmp_path / "spool", header, "a") as spool:
            merge_retried(
                spool, cache, cache.manifest.shards[0], mended, list(map(str, mended)), rows[mended]
            )
            expected = np.union1d(good, mended)
            assert spool.keys == list(map(str, expected))
            np.testing.assert_array_equal(spool.rows()[0 : len(expected)][:, 0], expected)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_retry_that_was_cut_off_after_its_manifest_leaves_no_replaced_file(
    tiny_teacher, texts, tmp_path, monkeypatch, format_, at
):
    """Stopped at the ``at``-th removal that follows the new manifest."""
    damaged(texts)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out", format=format_)
    damaged(texts, mended=ALL)
    remove, removed = Store.remove, []

    def cut_off(store, name):
        removed.append(name)
        if len(removed) == at:
            raise KeyboardInterrupt
        remove(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry", format=format_)
    _, cache = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry", format=format_)
    assert_adds_up(cache)
