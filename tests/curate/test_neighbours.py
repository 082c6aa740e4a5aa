"""Neighbours of cached rows: exact against plain numpy, what is left out, what is written, and how
they are drawn.
"""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.convert import convert
from dimefm.curate.neighbours import Neighbours, Rule, build
from dimefm.curate.neighbours import search as searching
from dimefm.curate.neighbours.search import Searcher
from dimefm.errors import CacheError


def cached(folder, *shards, dtype="float32", how=None):
    """Write a text cache of shards, each (keys, rows [n, dim]), and open it."""
    dim = shards[0][1].shape[1]
    header = Manifest(
        "text", "hdf5", dtype, dim, False, EncoderCard("any", None, dim, 100.0), how or {}, {}
    )
    writer = CacheWriter(
        folder, header, [(f"s{i}", len(keys)) for i, (keys, _) in enumerate(shards)]
    )
    for i, (keys, rows) in enumerate(shards):
        writer.write(f"s{i}", keys, rows.astype(dtype))
    writer.seal()
    return FeatureCache(folder)


def noise(n, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def named(rows):
    return [str(i) for i in range(len(rows))], rows


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow(rows, groups, rule):
    """Return ids [n, k] as a loop over all pairs finds them."""
    cosines = np.round(unit(rows) @ unit(rows).T, 6)
    ids = np.full((len(rows), rule.k), -1)
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if groups[i] != groups[j]]
        good = [j for j in others if rule.min_cosine <= cosines[i, j] <= rule.max_cosine]
        nearest = sorted(good, key=lambda j: (-cosines[i, j], j))[: rule.k]
        ids[i, : len(nearest)] = nearest
    return ids


def agree(rows, ids, wanted):
    """Assert that two graphs are one, but for rows whose cosines are the same to 1e-5."""
    np.testing.assert_array_equal(ids < 0, wanted < 0)
    cosines = [
        np.einsum("nd,nkd->nk", unit(rows), unit(rows)[found]) * (found >= 0)
        for found in (ids, wanted)
    ]
    np.testing.assert_allclose(*cosines, atol=1e-5)


@pytest.fixture
def three_shards(tmp_path):
    """Return a cache of 300 rows in shards of 100, 1 and 199."""
    rows = noise(300)
    return cached(tmp_path / "cache", named(rows[:100]), named(rows[100:101]), named(rows[101:]))


@pytest.mark.parametrize(
    "rule", [Rule(), Rule(k=1), Rule(k=5, min_cosine=0.2, max_cosine=0.6), Rule(k=400)], ids=str
)
def test_exact_neighbours_are_those_of_a_plain_loop(three_shards, tmp_path, rule):
    made = build(three_shards, tmp_path / "out", rule)
    wanted = slow(three_shards[:], range(300), rule)
    agree(three_shards[:], np.asarray(made.ids), wanted)
    rows = unit(three_shards[:])
    cosines = np.where(wanted >= 0, np.einsum("nd,nkd->nk", rows, rows[wanted]), np.nan)
    assert made.cosines.dtype == np.float16
    np.testing.assert_allclose(made.cosines, cosines, atol=6e-4)
    assert made.record["found"]["cut"] == 0


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(1, 50), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_never_itself_its_key_or_outside_the_window(tmp_path_factory, n, k, variants, seed, exact):
    rows = noise(n, 3, seed)
    rows[n // 2] = rows[0]  # an equal sentence
    keys = [f"row{i // variants}#{i % variants}" for i in range(n)]
    folder = tmp_path_factory.mktemp("any")
    rule = Rule(k, min_cosine=-0.5, index="exact" if exact else "ivf", probes=3)
    made = build(cached(folder / "cache", (keys, rows)), folder / "out", rule)
    ids, groups = np.asarray(made.ids), np.arange(n) // variants
    there = ids >= 0
    assert not (there & (groups[ids] == groups[:, None])).any()
    cosines = np.einsum("nd,nkd->nk", unit(rows), unit(rows)[ids])[there]
    assert (cosines > -0.5 - 1e-5).all() and (cosines < 1 - 1e-4 + 1e-5).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in ids)
    assert (there[:, :-1] >= there[:, 1:]).all()  # what is missing is missing at the end
    stored = np.nan_to_num(made.cosines, nan=-1)
    assert (stored[:, :-1] >= stored[:, 1:]).all()
    if exact:
        agree(rows, ids, slow(rows, groups, rule))


def test_equal_keys_belong_together_within_a_shard_only(tmp_path):
    rows = noise(6)
    same = cached(
        tmp_path / "a", (["k#0", "k#1", "k"], rows[:3]), (["k", "m#0#1", "m#1"], rows[3:])
    )
    made = build(same, tmp_path / "out", Rule(k=6))
    assert [set(row[row >= 0]) for row in made.ids] == [{3, 4, 5}] * 3 + [{0, 1, 2, 4, 5}] + [
        {0, 1, 2, 3}
    ] * 2


def test_many_equal_rows_are_searched_past(tmp_path):
    rows = np.concatenate([np.repeat(noise(1), 200, axis=0), noise(20, seed=1)])
    made = build(cached(tmp_path / "cache", named(rows)), tmp_path / "out", Rule(k=4))
    assert (np.asarray(made.ids[:200]) >= 200).all() and made.record["found"]["full"] == 220
    assert made.record["nearest"]["0.9999"] == 200


def test_what_is_deeper_than_the_deepest_search_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "DEEPEST", 64)
    rows = np.concatenate([np.repeat(noise(1), 200, axis=0), noise(20, seed=1)])
    made = build(cached(tmp_path / "cache", named(rows)), tmp_path / "out", Rule(k=4))
    assert made.record["found"] == {"full": 20, "fewer": 0, "none": 200, "cut": 200}
    assert "200 rows" in made.describe()


def test_the_same_cache_gives_the_same_bytes(three_shards, tmp_path, digests, monkeypatch):
    for index in ("exact", "ivf"):
        rule = Rule(index=index, probes=1)
        build(three_shards, tmp_path / index / "a", rule)
        monkeypatch.setattr(searching, "BLOCK", 7)
        build(three_shards, tmp_path / index / "b", rule)
        monkeypatch.undo()
        assert digests(tmp_path / index / "a") == digests(tmp_path / index / "b")


def test_the_recall_of_lists_is_measured(tmp_path):
    rows = noise(2000, 8)
    cache = cached(tmp_path / "cache", named(rows))
    exact = build(cache, tmp_path / "exact", Rule(k=2))
    assert exact.record["index"] == {"kind": "exact"} and "exact" in exact.describe()
    recalls = []
    for probes in (1, 4, 1000):
        made = build(cache, tmp_path / f"ivf{probes}", Rule(k=2, index="ivf", probes=probes))
        index = made.record["index"]
        assert (index["lists"], index["recall_rows"]) == (25, 200) and index["probes"] == min(
            probes, 25
        )
        whole = (made.ids[:, 0] == exact.ids[:, 0]).mean()
        assert abs(index["recall_at_1"] - whole) < 0.12  # 200 rows stand for 2,000
        recalls.append(index["recall_at_1"])
    assert recalls[0] < recalls[1] < recalls[2] == 1
    assert "low, more --probes" in Neighbours(tmp_path / "ivf1").describe()


def test_only_its_own_cache_is_accepted(three_shards, tmp_path):
    made = build(three_shards, tmp_path / "out")
    convert(three_shards, tmp_path / "int8", dtype="int8")
    made.check(FeatureCache(tmp_path / "int8"))
    other = cached(tmp_path / "other", named(noise(299)))
    with pytest.raises(
        CacheError, match=r"neighbours of the 300 rows of cache .*dimefm cache neighbours"
    ):
        made.check(other)
    with pytest.raises(CacheError, match="of the 300 rows"):
        build(other, tmp_path / "out")


def test_what_is_there_is_not_made_again_and_not_overwritten(three_shards, tmp_path, digests):
    rule = Rule(index="ivf", probes=99)
    build(three_shards, tmp_path / "out", rule)
    before = digests(tmp_path / "out")
    build(three_shards, tmp_path / "out", rule)
    with pytest.raises(CacheError, match=r"k: 3 against 16.*another --out"):
        build(three_shards, tmp_path / "out", Rule(k=3, index="ivf", probes=99))
    assert digests(tmp_path / "out") == before
    assert set(before) == {"ids.npy", "cosines.npy", "keys.jsonl", "neighbours.json"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_search_leaves_nothing_and_begins_anew(
    three_shards, tmp_path, monkeypatch, error, digests
):
    build(three_shards, tmp_path / "whole")
    real, calls = Searcher.search, []

    def torn(self, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise error
        return real(self, rows)

    monkeypatch.setattr(searching, "BLOCK", 50)
    monkeypatch.setattr(Searcher, "search", torn)
    with pytest.raises(error):
        build(three_shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CacheError, match="no neighbours, or unfinished ones"):
        Neighbours(tmp_path / "out")
    monkeypatch.setattr(Searcher, "search", real)
    (tmp_path / "out").mkdir()
    for name in ("ids.npy", "cosines.npy.part"):  # as a killed process leaves them
        (tmp_path / "out" / name).write_bytes(b"torn")
    build(three_shards, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_neighbours_at_a_url_are_those_in_a_folder(three_shards, tmp_path):
    url = f"memory://neighbours/{tmp_path.name}"
    here, there = (
        build(three_shards, tmp_path / "out"),
        build(three_shards, url, scratch=tmp_path / "scratch"),
    )
    assert there.record == here.record
    np.testing.assert_array_equal(there.ids, here.ids)


@pytest.fixture
def made(three_shards, tmp_path):
    return build(three_shards, tmp_path / "out", Rule(k=4, min_cosine=0.5))


def test_a_draw_is_one_of_the_neighbours_at_these_ranks(made):
    rows = np.repeat(np.arange(300), 40)
    seeds = np.random.default_rng(0).integers(0, 2**63, len(rows))
    drawn = made.draw(rows, seeds, (1, 4))
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(drawn, made.draw(rows, seeds.tolist(), (1, 4)))
    order = np.random.default_rng(1).permutation(len(rows))
    np.testing.assert_array_equal(drawn[order], made.draw(rows[order], seeds[order], (1, 4)))
    counts = set()
    for row, found in enumerate(drawn.reshape(300, 40)):
        there = set(made.ids[row, 1:4].tolist()) - {-1}
        counts.add(len(there))
        assert set(found.tolist()) == (there or {-1})  # 40 draws meet each of at most three
    assert counts == {0, 1, 2, 3}
    np.testing.assert_array_equal(made.draw(np.arange(300), [0] * 300, (0, 1)), made.ids[:, 0])
    assert made.draw(np.empty(0, np.int64), [], (0, 4)).shape == (0,)


@pytest.mark.parametrize("ranks", [(0, 5), (2, 2), (-1, 2), (3, 1)])
def test_ranks_that_are_not_there_are_refused(made, ranks):
    with pytest.raises(CacheError, match="expected 0 <= first < end <= 4"):
        made.draw(np.array([0]), [1], ranks)


@pytest.mark.parametrize("row", [-1, 300])
def test_rows_that_are_not_there_are_refused(made, row):
    with pytest.raises(IndexError, match="0 to 299"):
        made.draw(np.array([row]), [1], (0, 1))


def test_opened_again_in_another_process_it_draws_the_same(made):
    program = (
        "import sys; import numpy as np; from dimefm.curate.neighbours import Neighbours\n"
        f"print(Neighbours({str(made.store)!r}).draw(np.arange(9), range(9), (0, 4)).tolist())\n"
        "assert not {'torch', 'faiss'} & set(sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(output) == made.draw(np.arange(9), range(9), (0, 4)).tolist()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("version", 2, "reads version 1"),
        ("rows", -1, "damaged"),
        ("rows", "9", "damaged"),
        ("files", [], "damaged"),
        ("k", 5000, "damaged"),
        ("cache", None, "damaged"),
        ("found", {"full": None}, "damaged"),
    ],
)
def test_a_forged_record_is_refused(made, name, value, told):
    path = made.store.root / "neighbours.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(CacheError, match=told):
        Neighbours(made.store.root)


def test_damaged_arrays_are_refused(made, tmp_path):
    path = made.store.root / "ids.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(
        CacheError, match=rf"{len(whole) - 4} bytes, neighbours.json says {len(whole)}"
    ):
        _ = Neighbours(made.store.root).ids
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(CacheError, match="damaged"):
        _ = Neighbours(made.store.root).ids
    np.save(path, np.full((300, 4), 300, dtype="<i4"))
    with pytest.raises(CacheError, match="row 300 of 300"):
        Neighbours(made.store.root).draw(np.arange(3), range(3), (0, 4))
    path.unlink()
    with pytest.raises(CacheError, match="is missing"):
        _ = Neighbours(made.store.root).ids


def test_a_row_without_direction_is_named(tmp_path):
    rows = noise(9)
    rows[7] = 0
    cache = cached(tmp_path / "cache", named(rows[:4]), named(rows[4:]))
    with pytest.raises(CacheError, match=r"s1\.feat\.h5, row 3: its length is 0"):
        build(cache, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_row_has_no_neighbours(tmp_path):
    with pytest.raises(CacheError, match="need two at least"):
        build(cached(tmp_path / "cache", named(noise(1))), tmp_path / "out")


def test_tokens_have_no_neighbours(tmp_path):
    keys = [f"k{i // 2}#{i % 2}" for i in range(8)]
    how = {"tokens": {"count": 2, "rule": "pooled", "version": 1}}
    with pytest.raises(CacheError, match="holds 2 tokens of each text"):
        build(cached(tmp_path / "cache", (keys, noise(8)), how=how), tmp_path / "out")


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"min_cosine": 0.9, "max_cosine": 0.5}, {"index": "hnsw"}, {"probes": 0}]
)
def test_a_rule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Rule(**wrong)


def test_real_captions_have_neighbours_of_their_kind(shared_data, tmp_path):
    folder = shared_data / "features/flickr8k_clip_vitb32"
    keys, captions = zip(
        *(line.split("\t") for line in (folder / "paired.tsv").read_text().splitlines()),
        strict=True,
    )
    cache = cached(
        tmp_path / "cache",
        (list(keys), np.load(folder / "paired_text_features.npy")),
        dtype="float16",
    )
    made = build(cache, tmp_path / "out")
    photos = np.array(keys)
    assert made.record["found"]["full"] == len(captions) == 425
    assert not (photos[np.asarray(made.ids)] == photos[:, None]).any()
    for word in ("dog", "bike", "snow"):
        has = np.array([word in caption for caption in captions])
        assert has[np.asarray(made.ids)[has, 0]].mean() > 3 * has.mean()
    nearest = captions[made.ids[captions.index("A dog running through snow ."), 0]]
    assert nearest == "a dog runs through the snow ."


ODD_KEYS = ["a", "b\nc", "", "\u2028", "é 你好", "a", '"\\', "x" * 3000, "k#1", "\x1b[31m"]


@pytest.mark.parametrize("format_", ["hdf5", "parquet"])
def test_keys_of_rows_by_number_and_of_all(tmp_path, format_):
    cache = cached(tmp_path / "cache", (ODD_KEYS, noise(10)), ([], noise(0)), named(noise(5)))
    cache = FeatureCache(convert_to(cache, tmp_path / "new", format_))
    every = [*ODD_KEYS, "0", "1", "2", "3", "4"]
    assert cache.keys() == every
    assert cache.keys([14, 0, 14, 9]) == ["4", "a", "4", ODD_KEYS[9]]
    assert cache.keys(slice(8, 12)) == every[8:12] and cache.keys(3) == [ODD_KEYS[3]]
    assert cache.keys([]) == []
    with pytest.raises(IndexError):
        cache.keys([15])


def convert_to(cache, out, format_):
    convert(cache, out, format_)
    return out


def test_neighbours_have_the_keys_of_their_rows(tmp_path):
    rows = noise(15)
    rows[[3, 12]] = rows[[7, 11]] + 0.1 * noise(2)
    cache = cached(tmp_path / "cache", (ODD_KEYS, rows[:10]), named(rows[10:]))
    made = build(cache, tmp_path / "out", Rule(k=3))
    assert made.keys() == cache.keys()
    assert Neighbours(tmp_path / "out").keys() == cache.keys()
    pairs = {frozenset(pair[:2]) for pair in made.nearest_pairs(2)}
    assert pairs == {frozenset((ODD_KEYS[3], ODD_KEYS[7])), frozenset(("1", "2"))}
    assert made.nearest_pairs(1)[0][2] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "damage",
    [b"", b"0\n" * 9, b"[" * 9000 + b"\n", b'"a"\n'],
    ids=["empty", "numbers", "nested", "too few"],
)
def test_damaged_keys_are_one_line(made, damage):
    path = made.store.root / "keys.jsonl"
    record = made.store.root / "neighbours.json"
    path.write_bytes(damage)
    with pytest.raises(CacheError, match=r"keys\.jsonl: missing or damaged"):
        Neighbours(made.store.root).keys()
    fields = json.loads(record.read_text())
    digest = hashlib.sha256(damage).hexdigest()
    fields["files"]["keys.jsonl"] = {"bytes": len(damage), "sha256": digest}
    record.write_text(json.dumps(fields))
    with pytest.raises(CacheError, match=r"keys\.jsonl: missing or damaged"):
        Neighbours(made.store.root).keys()
    fields["files"]["keys.jsonl"] = 7
    record.write_text(json.dumps(fields))
    with pytest.raises(CacheError, match="damaged"):
        Neighbours(made.store.root)


def test_a_graph_of_an_earlier_dimefm_draws_and_says_that_it_has_no_keys(made):
    record = made.store.root / "neighbours.json"
    fields = json.loads(record.read_text())
    del fields["files"]["keys.jsonl"]
    record.write_text(json.dumps(fields))
    old = Neighbours(made.store.root)
    old.draw(np.arange(9), range(9), (0, 4))
    with pytest.raises(CacheError, match="without keys.jsonl"):
        old.keys()


def test_duplicates_that_are_left_out_are_told(tmp_path):
    rows = noise(20)
    rows[5] = rows[4]
    cache = cached(tmp_path / "cache", named(rows))
    assert "2 rows have another row above cosine 0.9999" in build(cache, tmp_path / "a").describe()
    kept = build(cache, tmp_path / "b", Rule(max_cosine=1.0))
    assert "duplicates" not in kept.describe() and 5 in kept.ids[4]


def test_what_a_killed_process_left_in_a_result_is_removed(three_shards, tmp_path):
    build(three_shards, tmp_path / "out")
    (tmp_path / "out/.neighbours.lock").touch()
    build(three_shards, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"ids.npy", "cosines.npy", "keys.jsonl", "neighbours.json"}


def test_without_faiss_the_error_names_the_package(three_shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(CacheError, match="faiss.* Fix: pip install faiss-cpu"):
        build(three_shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()
