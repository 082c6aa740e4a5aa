"""Raw rows meet their features by identity: name, count and keys; everything else is refused with
the row named.
"""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.writer import Bad
from dimefm.data import open_rows
from dimefm.data.alignment import align, align_caches
from dimefm.data.rows import Rows
from dimefm.data.views.image_views import ViewPolicy, row_keys
from dimefm.errors import CacheError
from tests.data.listed import Listed

HEADER = Manifest("image", "hdf5", "float32", 2, True, EncoderCard("t", "00", 2, 100.0), {}, {})


def cache(root, shards, bad=None, views=None):
    """Write shards {name: keys}; the vector of a row is (shard number, row number in the source);
    ``bad`` {name: rows}. With a view policy, rows are views."""
    shards = {name: row_keys(keys, views) for name, keys in shards.items()}
    header = dataclasses.replace(HEADER, how={"views": views and views.how()})
    writer = CacheWriter(root, header, [(name, len(keys)) for name, keys in shards.items()])
    for number, (name, keys) in enumerate(shards.items()):
        out = sorted((bad or {}).get(name, []))
        kept = [row for row in range(len(keys)) if row not in out]
        vectors = np.array([[number, row] for row in kept], dtype=np.float32).reshape(-1, 2)
        writer.write(
            name, [keys[row] for row in kept], vectors, [Bad(row, keys[row], "bad") for row in out]
        )
    writer.seal()
    return FeatureCache(root)


def rows(shards):
    return Rows([Listed(name, keys) for name, keys in shards.items()])


def located(aligned, features):
    """Return (raw row, shard, row in shard) of every usable row."""
    raw, (stored,) = aligned.locate(np.arange(len(aligned)))
    return [(int(r), int(v[0]), int(v[1])) for r, v in zip(raw, features[stored], strict=True)]


A, B, C = (["a0", "a1", "a2", "a3"], ["b0", "b1"], ["c0", "c1", "c2"])


def test_every_row_meets_its_own_feature(tmp_path):
    features = cache(tmp_path, {"a": A, "b": B})
    assert located(align(rows({"a": A, "b": B}), features), features) == [
        (0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 1, 0), (5, 1, 1),
    ]  # fmt: skip


def test_quarantined_rows_are_left_out_and_shift_nothing(tmp_path):
    features = cache(tmp_path, {"a": A, "b": B, "c": C}, bad={"a": [0, 2], "b": [0, 1], "c": [2]})
    aligned = align(rows({"a": A, "b": B, "c": C}), features)
    assert len(aligned) == 4
    assert located(aligned, features) == [(1, 0, 1), (3, 0, 3), (6, 2, 0), (7, 2, 1)]


def test_a_subset_of_shards_in_another_order_finds_its_features(tmp_path):
    features = cache(tmp_path, {"a": A, "b": B, "c": C}, bad={"c": [1]})
    assert located(align(rows({"c": C, "a": A}), features), features) == [
        (0, 2, 0), (2, 2, 2), (3, 0, 0), (4, 0, 1), (5, 0, 2), (6, 0, 3),
    ]  # fmt: skip


def test_locate_takes_rows_in_any_order(tmp_path):
    features = cache(tmp_path, {"a": A, "b": B}, bad={"a": [1]})
    aligned = align(rows({"a": A, "b": B}), features)
    raw, (stored,) = aligned.locate(np.array([4, 0, 1, 1]))
    assert raw.tolist() == [5, 0, 2, 2]
    assert features[stored].tolist() == [[1, 1], [0, 0], [0, 2], [0, 2]]


def test_names_may_differ_by_leading_folders(tmp_path):
    features = cache(tmp_path, {"train/a.tar": A})
    assert (
        len(align(rows({"a.tar": A}), features))
        == len(align(rows({"data/train/a.tar": A}), features))
        == 4
    )
    with pytest.raises(CacheError, match="no features for a shard named ba.tar"):
        align(rows({"ba.tar": A}), features)


def test_a_shard_that_was_not_extracted_is_named(tmp_path):
    features = cache(tmp_path, {"a": A, "b": B})
    with pytest.raises(
        CacheError, match=r"/raw/x: .* no features for a shard named x \(it holds a, b\).*extract"
    ):
        align(rows({"a": A, "x": B}), features)


def test_another_number_of_rows_is_refused_with_both_counts(tmp_path):
    features = cache(tmp_path, {"a": A})
    with pytest.raises(
        CacheError, match="/raw/a: 3 rows, but the features .* were made from 4.*extract it again"
    ):
        align(rows({"a": A[:3]}), features)


@pytest.mark.parametrize(
    ("keys", "row", "ours", "theirs"),
    [
        (["a0", "a2", "a1", "a3"], 1, "a2", "a1"),
        (A[::-1], 0, "a3", "a0"),
        (["a0", "a1", "a2", "x"], 3, "x", "a3"),
    ],
)
def test_other_keys_are_refused_with_the_row_and_both_keys(tmp_path, keys, row, ours, theirs):
    features = cache(tmp_path, {"a": A})
    with pytest.raises(
        CacheError, match=f"/raw/a, row {row}: .*'{ours}'.*'{theirs}'.*extract the features again"
    ):
        align(rows({"a": keys}), features)


def test_the_named_row_counts_quarantined_rows(tmp_path):
    features = cache(tmp_path, {"a": A}, bad={"a": [0, 1]})
    assert len(align(rows({"a": ["changed", "too", "a2", "a3"]}), features)) == 2
    with pytest.raises(CacheError, match="row 3: .*'x'.*'a3'"):
        align(rows({"a": ["a0", "a1", "a2", "x"]}), features)


def test_shards_of_one_name_are_told_apart_by_their_keys(tmp_path):
    features = cache(tmp_path, {"x/0.tar": ["p", "q"], "y/0.tar": ["r", "s"]})
    assert located(align(rows({"0.tar": ["r", "s"]}), features), features) == [(0, 1, 0), (1, 1, 1)]


def test_shards_that_keys_cannot_tell_apart_need_the_whole_name(tmp_path):
    features = cache(tmp_path, {"x/0.parquet": ["0", "1"], "y/0.parquet": ["0", "1"]})
    assert located(align(rows({"y/0.parquet": ["0", "1"]}), features), features) == [
        (0, 1, 0),
        (1, 1, 1),
    ]
    with pytest.raises(
        CacheError, match=re.escape("could be x/0.parquet or y/0.parquet") + ".*--dataroot"
    ):
        align(rows({"0.parquet": ["0", "1"]}), features)


def test_two_shards_never_share_one_shard_of_features(tmp_path):
    features = cache(tmp_path, {"0.parquet": ["0", "1"]})
    with pytest.raises(
        CacheError, match="/raw/x/0.parquet and /raw/y/0.parquet both match 0.parquet.*--dataroot"
    ):
        align(rows({"x/0.parquet": ["0", "1"], "y/0.parquet": ["0", "1"]}), features)


@settings(max_examples=30)
@given(data=st.data(), counts=st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_any_pattern_of_bad_rows_keeps_raw_row_and_feature_together(tmp_path_factory, data, counts):
    shards = {f"s{i}": [f"{i}-{j}" for j in range(n)] for i, n in enumerate(counts)}
    bad = {
        name: data.draw(st.sets(st.sampled_from(range(len(keys)))))
        for name, keys in shards.items()
        if keys
    }
    features = cache(tmp_path_factory.mktemp("cache"), shards, bad)
    order = data.draw(st.permutations(list(shards)))
    raw = rows({name: shards[name] for name in order})
    found = located(align(raw, features), features)
    assert [(raw[r].key) for r, _, _ in found] == [f"{shard}-{row}" for _, shard, row in found]
    assert len(found) == sum(counts) - sum(len(rows) for rows in bad.values())


def test_the_same_keys_over_another_content_are_refused(tmp_path):
    raw = tmp_path / "sentences.txt"
    raw.write_text("one\ntwo\n")
    before = open_rows([raw], "text")
    writer = CacheWriter(
        tmp_path / "c", HEADER, [("sentences.txt", 2)], {"sentences.txt": before.shards[0].digest()}
    )
    writer.write("sentences.txt", ["0", "1"], np.eye(2, dtype=np.float32))
    writer.seal()
    assert len(align(before, FeatureCache(tmp_path / "c"))) == 2
    raw.write_text("two\none\n")
    with pytest.raises(
        CacheError, match=r"sentences\.txt: its content has digest .* the source has changed since"
    ):
        align(open_rows([raw], "text"), FeatureCache(tmp_path / "c"))


@settings(max_examples=30)
@given(
    data=st.data(),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    teachers=st.integers(1, 3),
    views=st.sampled_from([None, 1, 2, 3]),
)
def test_any_view_in_any_cache_is_that_of_the_raw_row(
    tmp_path_factory, data, counts, teachers, views
):
    """Rows that one cache lacks in one view are left out; every other stands in each cache at its
    own place.
    """
    root, policy = tmp_path_factory.mktemp("caches"), None if views is None else ViewPolicy(views)
    shards, per_image = (
        {f"s{i}": [f"{i}-{j}" for j in range(n)] for i, n in enumerate(counts)},
        views or 1,
    )
    caches, gone = [], set()
    for number in range(teachers):
        bad = {
            name: data.draw(st.sets(st.sampled_from(range(len(keys) * per_image)), max_size=3))
            for name, keys in shards.items()
            if keys
        }
        caches.append(cache(root / str(number), shards, bad, policy))
        gone |= {f"{name[1:]}-{row // per_image}" for name, rows in bad.items() for row in rows}
    raw = rows({name: shards[name] for name in data.draw(st.permutations(list(shards)))})
    aligned = align(raw, *caches)
    asked = np.array(
        data.draw(
            st.lists(st.integers(0, per_image - 1), min_size=len(aligned), max_size=len(aligned))
        ),
        dtype=int,
    )
    found, stored = aligned.locate(np.arange(len(aligned)), asked)
    keys = [raw[row].key for row in found]
    assert keys == [row.key for row in raw if row.key not in gone]
    expected = [
        [int(key.split("-")[0]), int(key.split("-")[1]) * per_image + v]
        for key, v in zip(keys, asked, strict=True)
    ]
    for features, places in zip(caches, stored, strict=True):
        assert features[places].astype(int).tolist() == expected


def test_another_number_of_views_is_another_number_of_rows(tmp_path):
    features = cache(tmp_path, {"a": A}, views=ViewPolicy(2))
    assert len(align(rows({"a": A}), features)) == 4
    with pytest.raises(
        CacheError, match="/raw/a: 3 rows, but the features .* were made from 4.*extract it again"
    ):
        align(rows({"a": A[:3]}), features)
    with pytest.raises(CacheError, match="/raw/a, row 2: the raw row has key 'x#0', .* 'a2#0'"):
        align(rows({"a": ["a0", "a1", "x", "a3"]}), features)


def test_caches_of_the_same_sources_are_matched_by_their_names(tmp_path):
    first = cache(tmp_path / "1", {"a": A, "b": B, "c": C}, bad={"a": [1], "c": [0, 1, 2]})
    second = cache(tmp_path / "2", {"c": C, "a": A, "b": B}, bad={"a": [0, 1], "b": [1]})
    aligned = align_caches(first, second)
    source, (ours, theirs) = aligned.locate(np.arange(len(aligned)))
    assert source.tolist() == [2, 3, 4]
    assert first[ours].tolist() == [[0, 2], [0, 3], [1, 0]]
    assert second[theirs].tolist() == [[1, 2], [1, 3], [2, 0]]


def test_one_cache_alone_is_used_row_by_row(tmp_path):
    features = cache(tmp_path, {"a": A, "c": C}, bad={"a": [1]})
    aligned = align_caches(features)
    _, (stored,) = aligned.locate(np.arange(len(aligned)))
    assert stored.tolist() == list(range(len(features)))
