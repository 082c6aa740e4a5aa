"""The writer of every format: a plan is kept, work is taken up where it stopped, and every row is
stored or listed.
"""

import json

import numpy as np
import pytest

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError
from tests.contracts.formats.conftest import CARD, FORMATS, header, keys_of, make, vectors


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("dtype", "float32", "dtype: 'float32' against 'float16'"),
        ("kind", "text", "kind: 'text' against 'image'"),
        ("how", {"decoder": "another"}, "how.decoder: 'another' against 'pil'"),
        (
            "encoder",
            EncoderCard(**{**CARD.__dict__, "weights_sha256": "cd" * 32}),
            "encoder.weights_sha256: 'cdcd",
        ),
        (
            "encoder",
            EncoderCard(**{**CARD.__dict__, "logit_scale": 50.0}),
            "encoder.logit_scale: 50.0 against 100.0",
        ),
    ],
)
@pytest.mark.parametrize("sealed", [True, False], ids=["finished", "unfinished"])
def test_another_plan_is_refused_and_the_field_named(
    tmp_path, field, value, named, sealed, digests
):
    writer = CacheWriter(tmp_path, header(), [("a.tar", 2)])
    if sealed:
        writer.write("a.tar", ["x", "y"], vectors(2, 4))
        writer.seal()
    before = digests(tmp_path)
    with pytest.raises(CacheError, match="another --out") as caught:
        CacheWriter(tmp_path, header(**{field: value}), [("a.tar", 2)])
    assert named in str(caught.value)
    assert digests(tmp_path) == before


def test_another_format_or_other_sources_are_refused_and_named(tmp_path):
    CacheWriter(tmp_path, header(), [("a.tar", 2)])
    with pytest.raises(CacheError, match="format: 'parquet' against 'hdf5'"):
        CacheWriter(tmp_path, header("parquet"), [("a.tar", 2)])
    with pytest.raises(CacheError, match="rows of source a.tar: 3 against 2"):
        CacheWriter(tmp_path, header(), [("a.tar", 3)])


def test_newer_libraries_may_take_up_the_work(tmp_path):
    CacheWriter(tmp_path, header(), [("a.tar", 2)])
    writer = CacheWriter(tmp_path, header(libraries={"numpy": "3"}), [("a.tar", 2)])
    writer.write("a.tar", ["x", "y"], vectors(2, 4))
    assert writer.seal().libraries == {"numpy": "3"}


def test_interrupted_write_leaves_no_cache_and_the_next_run_goes_on(tmp_path, format_, digests):
    counts = [("a.tar", 3), ("b.tar", 0), ("c.tar", 4)]
    keys, rows = (
        {name: keys_of(n) for name, n in counts},
        {name: vectors(n, 4, n) for name, n in counts},
    )

    def run(root, stop_before=None):
        writer = CacheWriter(root, header(format_), counts)
        written = []
        for name, _ in counts:
            if name == stop_before:
                raise KeyboardInterrupt
            if name not in writer:
                writer.write(name, keys[name], rows[name])
                written.append(name)
        writer.seal()
        return written

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", stop_before="c.tar")
    with pytest.raises(
        CacheError, match="unfinished cache. Fix: run the same extract-features command again"
    ):
        FeatureCache(tmp_path / "a")
    assert run(tmp_path / "a") == ["c.tar"]
    assert run(tmp_path / "b") == ["a.tar", "b.tar", "c.tar"]
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert run(tmp_path / "a") == []


def test_seal_with_a_missing_shard_is_refused(tmp_path):
    writer = CacheWriter(tmp_path, header(), [("a.tar", 1), ("b.tar", 1)])
    writer.write("a.tar", ["k"], vectors(1, 4))
    with pytest.raises(CacheError, match=r"1 shards are not written yet, the first is b\.tar"):
        writer.seal()
    assert not (tmp_path / "manifest.json").exists()


def test_a_finished_shard_that_was_cut_is_written_again(tmp_path, format_):
    writer = CacheWriter(tmp_path, header(format_), [("a.tar", 2), ("b.tar", 1)])
    info = writer.write("a.tar", ["x", "y"], vectors(2, 4))
    (tmp_path / info.file).write_bytes(b"")
    assert "a.tar" not in CacheWriter(tmp_path, header(format_), [("a.tar", 2), ("b.tar", 1)])


def test_a_finished_cache_that_lost_a_shard_is_not_called_finished(tmp_path, format_):
    cache, _, _ = make(tmp_path, (5,), format_)
    (tmp_path / cache.manifest.shards[0].file).unlink()
    with pytest.raises(CacheError, match="missing, or not of the .* run the same command again"):
        CacheWriter(tmp_path, header(format_), [("part/000.tar", 5)])


@pytest.mark.parametrize(
    ("keys", "bad"),
    [
        (["a", "b"], []),
        (["a", "b", "c", "d"], []),
        (["a", "b"], [1, 1]),
        (["a", "b"], [3]),
        (["a", "b", "c"], [0]),
    ],
    ids=["lost", "invented", "twice", "outside", "one-too-many"],
)
def test_rows_that_do_not_add_up_are_refused(tmp_path, keys, bad):
    writer = CacheWriter(tmp_path, header(), [("a.tar", 3)])
    with pytest.raises(CacheError, match=r"a\.tar: 3 rows in"):
        writer.write("a.tar", keys, vectors(len(keys), 4), [Bad(row, "k", "why") for row in bad])
    assert not list(tmp_path.rglob("*.h5"))


def test_quarantined_rows_are_listed_with_source_row_key_and_reason(tmp_path, format_):
    writer = CacheWriter(tmp_path, header(format_), [("a.tar", 3), ("b.tar", 1), ("c.tar", 1)])
    writer.write("c.tar", [], vectors(0, 4), [Bad(0, "né", "gone")])
    writer.write("a.tar", ["y"], vectors(1, 4), [Bad(2, "z", "torn"), Bad(0, "x", "empty")])
    writer.write("b.tar", ["w"], vectors(1, 4))
    manifest = writer.seal()
    assert [info.bad for info in manifest.shards] == [(0, 2), (), (0,)]
    lines = (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "a.tar", "row": 0, "key": "x", "reason": "empty"},
        {"source": "a.tar", "row": 2, "key": "z", "reason": "torn"},
        {"source": "c.tar", "row": 0, "key": "né", "reason": "gone"},
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path, format_, value):
    rows = vectors(3, 4)
    rows[1, 2] = value
    with pytest.raises(
        CacheError, match=r"a\.tar, stored row 1: the vector is not finite as float16"
    ):
        CacheWriter(tmp_path, header(format_), [("a.tar", 3)]).write("a.tar", ["x", "y", "z"], rows)


def test_a_place_that_cannot_be_written_is_a_cache_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot be written.*choose another --out"):
        CacheWriter(tmp_path / "file" / "cache", header(), [("a.tar", 1)])


def test_fingerprint_does_not_depend_on_format_or_place_but_on_keys_encoder_and_settings(tmp_path):
    made = [
        make(tmp_path / f"{f}-{d}", (3, 2), f, d)[0]
        for f in FORMATS
        for d in ("float16", "float32")
    ]
    prints = {cache.manifest.fingerprint for cache in made}
    assert len(prints) == 1
    cache, _, _ = make(tmp_path / "more", (3, 3))
    assert cache.manifest.fingerprint not in prints
    for field, value in {"how": {"decoder": "x"}, "kind": "text", "normalized": False}.items():
        assert header(**{field: value}).fingerprint != header().fingerprint
    other = EncoderCard(**{**CARD.__dict__, "weights_sha256": "cd" * 32})
    renamed = EncoderCard(**{**CARD.__dict__, "name": "another/name"})
    assert header(encoder=other).fingerprint != header().fingerprint
    assert header(encoder=renamed).fingerprint == header().fingerprint


def test_the_same_content_gives_the_same_bytes(tmp_path, format_, dtype, digests):
    make(tmp_path / "a", (5, 0, 3), format_, dtype)
    make(tmp_path / "b", (5, 0, 3), format_, dtype)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    make(tmp_path / "c", (5, 0, 3), format_, dtype, seed=1)
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
