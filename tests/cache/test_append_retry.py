"""A finished cache grows, and its quarantined rows are tried again: nothing else of it changes."""

import dataclasses
import json
import random

import numpy as np
import pytest

from dimefm import plugins
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.code import Fit
from dimefm.cache.formats import BLOCK
from dimefm.cache.quarantine import quarantined
from dimefm.cache.spool import Spool
from dimefm.cache.store import Store
from dimefm.cache.writer import Bad
from dimefm.data import open_rows
from dimefm.data.formats.text import TextShard
from dimefm.errors import BadRow, CacheError
from dimefm.extract import Settings, extract
from dimefm.models.encoder import load_encoder
from dimefm.pipeline import _merge

FORMATS = plugins.names("caches")
QUIET = Settings(progress=False, batch_size=4)
DTYPES = ("float16", "float32", "int8")


@pytest.fixture(params=FORMATS)
def format_(request):
    return request.param


def text_shard(path, sentences):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")


def table_shard(path, sentences):
    """Write a TSV with its index."""
    lines = [f"k{i}\t{json.dumps({'captions': [text]})}\n" for i, text in enumerate(sentences)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    path.with_suffix(".lineidx").write_text("".join(f"{sum(map(len, lines[:i]))}\n" for i in range(len(lines))))


SOURCES = {"text": (text_shard, ".txt", "text"), "tsv": (table_shard, ".tsv", "text"), "folder": (None, "", "image")}


class Raw:
    """Raw shards of one kind, some rows of which cannot be used."""

    def __init__(self, folder, source, picture):
        self.folder, self.source, self.picture = folder, source, picture
        self.write, self.suffix, self.kind = SOURCES[source]

    def shard(self, name, n, bad=(), same_size=True):
        """Write (again) shard ``name`` of n rows, of which ``bad`` cannot be used."""
        if self.source != "folder":
            texts = ["" if i in bad else f"photo {i} of {name}" for i in range(n)]
            self.write(self.folder / f"{name}{self.suffix}", texts)
            return
        for i in range(n):
            path = self.folder / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = self.picture(1000 * sum(map(ord, name)) + i)
            path.write_bytes((bytes(len(image)) if same_size else b"torn") if i in bad else image)

    def rows(self, *names):
        """Open these shards, by default all."""
        every = names or sorted({path.name.split(".")[0] for path in self.folder.iterdir()})
        return open_rows([self.folder / f"{name}{self.suffix}" for name in every], self.kind, dataroot=self.folder)


@pytest.fixture(params=SOURCES)
def raw(request, tmp_path, picture):
    return Raw(tmp_path / "raw", request.param, picture)


@pytest.fixture
def texts(tmp_path, picture):
    return Raw(tmp_path / "raw", "text", picture)


def run(encoder, rows, kind, out, mode="create", **changes):
    """Extract; return (report, cache)."""
    report = extract(encoder, rows, kind, out, dataclasses.replace(QUIET, **changes), mode=mode)
    return report, FeatureCache(out, out.with_name("flat"))


def stamps(cache):
    """Return shard file -> (inode, time of change), companions too."""
    files = [file for info in cache.manifest.shards for file in (info.file, *cache.companions(info))]
    return {file: ((cache.root / file).stat().st_ino, (cache.root / file).stat().st_mtime_ns) for file in files}


def named(cache):
    """Return (source, source row) -> (key, stored row as bytes) of every stored row."""
    found = {}
    for info in cache.manifest.shards:
        keys, rows = cache.read(info)
        good = sorted(set(range(info.source_rows)) - set(info.bad))
        found |= {(info.source, at): (key, row.tobytes()) for at, key, row in zip(good, keys, rows, strict=True)}
    return found


def bad_rows(cache):
    return [(source, bad.row) for source, bad in quarantined(cache.store, cache.manifest)]


def assert_adds_up(cache):
    """Rows in are rows out and rows quarantined; the list is the manifest's; nothing is left over."""
    for info in cache.manifest.shards:
        assert info.source_rows == info.rows + len(info.bad)
    listed = cache.root / "quarantine.jsonl"
    entries = [json.loads(line) for line in listed.read_text("utf-8").splitlines()] if listed.exists() else []
    assert [(entry["source"], entry["row"]) for entry in entries] == bad_rows(cache)
    assert listed.exists() == bool(entries) and all(entry["reason"] for entry in entries)
    there = {path.relative_to(cache.root).as_posix() for path in cache.root.rglob("*") if path.is_file()}
    assert there == {*stamps(cache), "manifest.json", *(["quarantine.jsonl"] if entries else [])}
    assert cache.verify(sha256=True) == len(cache.manifest.shards)


@pytest.fixture
def wide(monkeypatch):
    """Make int8 codes wide enough for rows that were not there when they were fitted on a handful."""
    fitted = Fit.code
    monkeypatch.setattr(Fit, "code", lambda self, margin=6.0: fitted(self, margin))


# append


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_shards_come_after_the_old_ones_which_stay_untouched(tiny_teacher, texts, tmp_path, format_, dtype, wide):
    texts.shard("b", 5, [2])
    texts.shard("c", 4)
    _, old = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", format=format_, dtype=dtype)
    before, kept = stamps(old), named(old)
    texts.shard("a", 3, [0])
    texts.shard("d", 1)
    report, new = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "append", format=format_, dtype=dtype)
    assert [info.source for info in new.manifest.shards] == ["b.txt", "c.txt", "a.txt", "d.txt"]
    assert before.items() <= stamps(new).items() and kept.items() <= named(new).items()
    np.testing.assert_array_equal(new[: len(old)], old[:])
    assert report.rows_done == 4 and bad_rows(new) == [("b.txt", 2), ("a.txt", 0)]
    assert new.manifest.code == old.manifest.code and new.manifest.fingerprint != old.manifest.fingerprint
    assert_adds_up(new)
    tokens, _ = tiny_teacher.tokenize(["photo 0 of d"])
    np.testing.assert_allclose(new[len(new) - 1], tiny_teacher.encode_text(tokens)[0].numpy(), atol=0.02)


def test_the_new_shards_alone_are_enough_to_append(tiny_teacher, texts, tmp_path):
    texts.shard("a", 3)
    texts.shard("b", 4, [1])
    run(tiny_teacher, texts.rows("a"), "text", tmp_path / "out")
    _, cache = run(tiny_teacher, texts.rows("b"), "text", tmp_path / "out", "append")
    assert [info.source for info in cache.manifest.shards] == ["a.txt", "b.txt"]
    assert_adds_up(cache)


def test_appending_twice_does_nothing(tiny_teacher, texts, tmp_path, format_, digests):
    texts.shard("a", 3)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out", format=format_)
    texts.shard("b", 3, [1])
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "append", format=format_)
    before = digests(tmp_path / "out")
    for mode in ("append", "create"):
        report, cache = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", mode, format=format_)
        assert report.already_finished and report.rows_done == 0
        assert digests(tmp_path / "out") == before
    assert_adds_up(cache)


def test_without_append_new_shards_are_refused_and_the_flag_is_named(tiny_teacher, texts, tmp_path, digests):
    texts.shard("a", 3)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    before = digests(tmp_path / "out")
    texts.shard("b", 3)
    with pytest.raises(CacheError, match=r"sources only here: b\.txt.*--append"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize("rows", [3, 4], ids=["other-content", "other-count"])
def test_appending_to_changed_sources_is_refused_and_the_source_is_named(tiny_teacher, texts, tmp_path, digests, rows):
    texts.shard("a", 3)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    before = digests(tmp_path / "out")
    text_shard(tmp_path / "raw/a.txt", ["something else"] * rows)
    texts.shard("b", 3)
    with pytest.raises(CacheError, match=r"source a\.txt"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "append")
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize("mode", ["append", "retry"])
def test_there_must_be_a_finished_cache_to_append_to_or_retry(tiny_teacher, texts, tmp_path, mode):
    texts.shard("a", 3)
    with pytest.raises(CacheError, match="holds no finished cache"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out", mode)


@pytest.mark.parametrize("mode", ["append", "retry"])
def test_other_settings_or_another_teacher_are_refused_and_named(tiny_teacher, texts, tmp_path, digests, mode):
    texts.shard("a", 3, [1])
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    before = digests(tmp_path / "out")
    texts.shard("a", 3)
    if mode == "append":
        texts.shard("a", 3, [1])
        texts.shard("b", 3)
    with pytest.raises(CacheError, match="dtype: 'float32' against 'float16'"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out", mode, dtype="float32")
    with pytest.raises(CacheError, match="how.captions"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out", mode, captions="all")
    with pytest.raises(CacheError, match=r"encoder\.weights_sha256"):
        run(load_encoder("ResNet-mini-64/random:1", "cpu"), texts.rows(), "text", tmp_path / "out", mode)
    assert digests(tmp_path / "out") == before


def test_a_second_teacher_over_the_same_rows_leaves_the_first_cache_alone(tiny_teacher, texts, tmp_path, digests):
    texts.shard("a", 3, [1])
    _, first = run(tiny_teacher, texts.rows(), "text", tmp_path / "one")
    before = digests(tmp_path / "one")
    _, second = run(load_encoder("ResNet-mini-64/random:1", "cpu"), texts.rows(), "text", tmp_path / "two")
    assert digests(tmp_path / "one") == before
    assert second.manifest.encoder.weights_sha256 != first.manifest.encoder.weights_sha256
    assert [info.keys_sha256 for info in second.manifest.shards] == [info.keys_sha256 for info in first.manifest.shards]
    assert np.abs(second[:].astype("f4") - first[:]).max() > 0.01


# retry

BAD = {"a": [0, 2, 3, 7], "b": [], "c": [4], "d": [0, 1]}  # first, last, several beside each other; a whole shard
ROWS = {"a": 8, "b": 3, "c": 9, "d": 2}


def damaged(raw, mended=(), **options):
    for name, n in ROWS.items():
        raw.shard(name, n, [row for row in BAD[name] if (name, row) not in mended], **options)


ALL = [(name, row) for name, rows in BAD.items() for row in rows]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", SOURCES)
def test_rows_that_were_mended_take_their_place_and_nothing_else_changes(
    tiny_teacher, tmp_path, picture, format_, dtype, source, wide
):
    raw, settings = Raw(tmp_path / "raw", source, picture), {"format": format_, "dtype": dtype}
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
    if source == "folder":  # its digest is of names and sizes: only the bad rows are encoded again
        assert kept.items() <= found.items() and report.rows_done == 7
    else:
        assert {place: key for place, (key, _) in kept.items()}.items() <= {p: key for p, (key, _) in found.items()}.items()
    assert_adds_up(new)
    _, whole = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "whole", **settings | {"format": "hdf5"})
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


@pytest.mark.parametrize("dtype", DTYPES)
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
        report, new = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry", **settings, batch_size=1)
        assert report.recovered == len(mended)
        assert [(name.split(".")[0], row) for name, row in bad_rows(new)] == left
        assert kept.items() <= named(new).items()
        kept = named(new)
        assert {file: stamp for file, stamp in before.items() if file.startswith("b")}.items() <= stamps(new).items()
        assert_adds_up(new)
    if dtype != "int8":  # its code was fitted without these rows
        assert named(new) == named(whole)
        assert new.manifest.fingerprint == whole.manifest.fingerprint
    assert [key for key, _ in named(new).values()] == [key for key, _ in named(whole).values()]
    report, _ = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry", **settings, batch_size=1)
    assert report.already_finished


def test_rows_that_are_still_bad_stay_listed_and_no_file_is_written_again(tiny_teacher, raw, tmp_path, format_):
    damaged(raw)
    _, old = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", format=format_)
    before, listed = stamps(old), (tmp_path / "out/quarantine.jsonl").read_bytes()
    report, new = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", "retry", format=format_)
    assert (report.tried, report.recovered) == (7, 0)
    assert stamps(new) == before and (tmp_path / "out/quarantine.jsonl").read_bytes() == listed
    assert_adds_up(new)


def test_a_cache_without_quarantined_rows_has_nothing_to_retry(tiny_teacher, texts, tmp_path, digests):
    texts.shard("a", 3)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    before = digests(tmp_path / "out")
    report, _ = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "retry")
    assert report.already_finished and digests(tmp_path / "out") == before


@pytest.mark.parametrize("pattern", range(12))
def test_any_pattern_of_bad_rows_is_filled_in_the_right_places(tiny_teacher, texts, tmp_path, monkeypatch, pattern):
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
    tokens, _ = tiny_teacher.tokenize([f"photo {row} of a" for row in good] + ["photo 0 of b", "photo 1 of b"])
    np.testing.assert_allclose(cache[:], tiny_teacher.encode_text(tokens).numpy(), atol=2e-3)
    assert cache.read(cache.manifest.shards[0])[0] == list(map(str, good))
    assert_adds_up(cache)


def test_bad_rows_around_the_blocks_of_a_large_shard_are_filled_in_the_right_places(tmp_path, format_, monkeypatch):
    n = 2 * BLOCK + 7
    bad = np.array([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK, n - 2, n - 1])
    rows = np.arange(n, dtype=np.float32)[:, None]
    card = EncoderCard("test", None, 1, 100.0)
    header = Manifest("text", format_, "float32", 1, False, card, {}, {})
    good = np.setdiff1d(np.arange(n), bad)
    writer = CacheWriter(tmp_path / "out", header, [("a", n)])
    writer.write("a", list(map(str, good)), rows[good], [Bad(int(row), str(row), "torn") for row in bad])
    writer.seal()
    cache = FeatureCache(tmp_path / "out")
    for mended in (bad, bad[::2], bad[-1:], bad[:1]):
        with Spool(tmp_path / "spool", header, "a") as spool:
            _merge(spool, cache, cache.manifest.shards[0], mended, list(map(str, mended)), rows[mended])
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


# int8


def test_int8_rows_decode_to_the_encoders_and_the_manifest_says_what_that_costs(tiny_teacher, raw, tmp_path, format_):
    damaged(raw)
    _, exact = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "exact", dtype="float32")
    _, cache = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", format=format_, dtype="int8")
    cosines = (cache[:] * exact[:]).sum(1) / np.linalg.norm(cache[:], axis=1)
    assert cache[:].dtype == np.float32 and cosines.min() > 0.995
    assert cache.manifest.effect["rows"] == len(cache)
    assert cache.manifest.effect["min_cosine"] == pytest.approx(cosines.min(), abs=1e-5)
    assert cache.manifest.fingerprint == exact.manifest.fingerprint


class Loud:
    """An encoder some of whose vectors have one large number."""

    def __init__(self, encoder, loud):
        self.encoder, self.loud = encoder, loud

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_text(self, tokens):
        found = self.encoder.encode_text(tokens).clone()
        if self.loud:
            found[-1, 5] = 3.0
        return found


def test_a_later_shard_that_leaves_the_int8_code_is_refused_with_its_row_and_the_cache_stays(
    tiny_teacher, texts, tmp_path, format_, digests
):
    texts.shard("a", 6)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out", format=format_, dtype="int8")
    before = digests(tmp_path / "out")
    text_shard(tmp_path / "raw/b.txt", [f"photo {i} of a" for i in range(6)])
    with pytest.raises(CacheError, match=r"b\.txt.*row 3, dimension 5: 3 lies outside the int8 code's.*float16"):
        run(Loud(tiny_teacher, True), texts.rows(), "text", tmp_path / "out", "append", format=format_, dtype="int8")
    after = digests(tmp_path / "out")
    assert before.items() <= after.items()
    assert not [name for name in after.keys() - before.keys() if not name.startswith(".partial/")]
    assert FeatureCache(tmp_path / "out").verify(sha256=True) == 1


def test_the_row_outside_the_int8_code_is_numbered_within_its_shard(tmp_path):
    """Rows of a shard come in batches; the message counts them through."""
    rows = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    fit = Fit(8)
    fit.add(rows)
    card = EncoderCard("test", None, 3, 100.0)
    writer = CacheWriter(
        tmp_path, Manifest("text", "hdf5", "int8", 3, False, card, {}, {}, code=fit.code().fields()), [("a", 9)]
    )
    with writer.spool("a") as spool:
        spool.add([str(i) for i in range(8)], rows)
        with pytest.raises(CacheError, match="a, stored row 8, dimension 1"):
            spool.add(["8"], np.array([[0, 1e6, 0]], np.float32))
