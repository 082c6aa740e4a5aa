"""What every shard format of the feature cache keeps; a new file in ``cache/formats/`` is tested by being there."""

import itertools
import json
import pickle
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dimefm import plugins
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest, reader
from dimefm.cache.code import Code, Fit
from dimefm.cache.convert import convert
from dimefm.cache.formats import BLOCK
from dimefm.cache.quarantine import quarantined
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError

FORMATS = plugins.names("caches")
CARD = EncoderCard("test/card", "ab" * 32, 4, 100.0, preprocess={"size": [8, 8]}, tokenizer="words", context_length=9)
KEYS = ["plain", "with space", "café/naïve 你好.jpg", "\U0001f600", "", "plain", "quote\"'\\"]


@pytest.fixture(params=FORMATS)
def format_(request):
    return request.param


@pytest.fixture(params=["float16", "float32"])
def dtype(request):
    return request.param


def header(format_="hdf5", dtype="float16", dim=4, **fields):
    given = {"kind": "image", "normalized": True, "encoder": CARD, "how": {"decoder": "pil"}, "libraries": {"numpy": "2"}}
    return Manifest(format=format_, dtype=dtype, dim=dim, **{**given, **fields})


def vectors(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def keys_of(n, start=0):
    return [f"{KEYS[i % len(KEYS)]}-{i}" for i in range(start, start + n)]


def make(root, counts, format_="hdf5", dtype="float16", dim=4, seed=0):
    """Write a cache of shards with ``counts`` rows; return (cache, its rows in the stored dtype, its keys)."""
    sources = [(f"part/{i:03d}.tar", n) for i, n in enumerate(counts)]
    writer = CacheWriter(root, header(format_, dtype, dim), sources)
    rows, keys = vectors(sum(counts), dim, seed), keys_of(sum(counts))
    start = 0
    for name, n in sources:
        writer.write(name, keys[start : start + n], rows[start : start + n])
        start += n
    writer.seal()
    return FeatureCache(root), rows.astype(dtype), keys


@pytest.mark.parametrize(
    ("counts", "dim"),
    [((5,), 4), ((1,), 4), ((3, 0, 2), 4), ((0,), 4), ((4, 1), 1), (tuple([2] * 30), 3), ((700,), 16)],
    ids=["one", "one-row", "empty-between", "empty", "dim-1", "many-shards", "longer"],
)
def test_reads_back_what_was_written(tmp_path, format_, dtype, counts, dim):
    cache, rows, keys = make(tmp_path, counts, format_, dtype, dim)
    assert len(cache) == sum(counts)
    assert cache[:].dtype == dtype
    np.testing.assert_array_equal(cache[:], rows)
    read = [cache.read(info) for info in cache.manifest.shards]
    assert [key for part, _ in read for key in part] == keys
    np.testing.assert_array_equal(np.concatenate([part for _, part in read]), rows)
    assert [info.rows for info in cache.manifest.shards] == list(counts)
    assert cache.verify(sha256=True) == len(counts)


def test_gathers_rows_in_any_order_with_repeats(tmp_path, format_, dtype):
    cache, rows, _ = make(tmp_path, (5, 0, 3, 1), format_, dtype)
    wanted = np.array([8, 0, 7, 7, 3, 5, 0, 4])
    np.testing.assert_array_equal(cache[wanted], rows[wanted])
    np.testing.assert_array_equal(cache[list(wanted)], rows[wanted])
    np.testing.assert_array_equal(cache[[]], rows[:0])
    np.testing.assert_array_equal(cache[6], rows[6])
    for piece in (slice(2, 7), slice(None, None, -2), slice(8, 100), slice(4, 4), slice(-3, None)):
        np.testing.assert_array_equal(cache[piece], rows[piece])


@pytest.mark.parametrize("row", [9, -1, [0, 12]])
def test_a_row_that_is_not_there_is_an_error(tmp_path, format_, row):
    cache, _, _ = make(tmp_path, (5, 4), format_)
    with pytest.raises(IndexError, match="rows 0 to 8"):
        cache[row]


@pytest.mark.parametrize("rows", [np.ones(9, dtype=bool), np.array([0.0, 1.5])])
def test_a_mask_or_fractions_are_refused_and_not_read_as_row_numbers(tmp_path, rows):
    cache, _, _ = make(tmp_path, (9,))
    with pytest.raises(TypeError, match="whole numbers"):
        cache[rows]


def test_pickled_cache_reads_the_same_rows(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5, 4), format_)
    cache[:]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache))[[8, 0]], rows[[8, 0]])


def test_a_finished_cache_that_lost_a_shard_is_not_called_finished(tmp_path, format_):
    cache, _, _ = make(tmp_path, (5,), format_)
    (tmp_path / cache.manifest.shards[0].file).unlink()
    with pytest.raises(CacheError, match="missing, or not of the .* run the same command again"):
        CacheWriter(tmp_path, header(format_), [("part/000.tar", 5)])


def test_a_damaged_shard_is_not_copied_for_random_access(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5,), format_)
    shard = tmp_path / cache.manifest.shards[0].file
    whole = shard.read_bytes()
    if cache.manifest.shards[0].offset is None:
        shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(CacheError, match="SHA-256"):
            cache[:]
        shard.write_bytes(whole)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)


def test_threads_that_use_a_new_cache_at_once_all_read_it_whole(tmp_path, format_):
    _, rows, _ = make(tmp_path, tuple([300] * 4), format_, dim=64)
    cache = FeatureCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: cache[:], range(8)):
            np.testing.assert_array_equal(found, rows)
    assert not list(tmp_path.rglob("*.part"))


def test_a_missing_or_changed_companion_is_found_by_verify(tmp_path, format_):
    cache, _, _ = make(tmp_path, (5,), format_)
    for suffix in cache.format.SUFFIXES[:-1]:
        companion = next(tmp_path.rglob(f"*{suffix}"))
        whole = companion.read_text()
        companion.write_text("0\n")
        with pytest.raises(CacheError, match="is not as recorded"):
            cache.verify(sha256=True)
        companion.unlink()
        with pytest.raises(CacheError, match="is missing"):
            cache.verify(sha256=True)
        companion.write_text(whole)
    assert cache.verify(sha256=True) == 1


def test_processes_that_open_a_cache_at_once_all_read_it_whole(tmp_path, format_):
    cache, rows, _ = make(tmp_path, tuple([300] * 8), format_, dim=64)
    program = "import sys; from dimefm.cache import FeatureCache; print(FeatureCache(sys.argv[1])[:].astype('f8').sum())"
    readers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    found = [float(reader.communicate()[0]) for reader in readers]
    assert found == [pytest.approx(rows.astype(np.float64).sum())] * 3
    assert not list(tmp_path.rglob("*.part"))
    np.testing.assert_array_equal(cache[:], rows)


def test_fingerprint_does_not_depend_on_format_or_place_but_on_keys_encoder_and_settings(tmp_path):
    made = [make(tmp_path / f"{f}-{d}", (3, 2), f, d)[0] for f in FORMATS for d in ("float16", "float32")]
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


def shard(cache, number=0):
    return cache.root / cache.manifest.shards[number].file


def test_cut_shard_is_named_on_verify_and_on_read(tmp_path, format_):
    cache, _, _ = make(tmp_path, (50, 3), format_)
    path = shard(cache)
    path.write_bytes(path.read_bytes()[:-7])
    for use in (lambda: FeatureCache(tmp_path).verify(), lambda: FeatureCache(tmp_path)[0]):
        with pytest.raises(CacheError, match=r"000\.feat.*bytes, the manifest says \d+"):
            use()
    assert len(FeatureCache(tmp_path)[50:]) == 3  # the other shard is still good


def test_missing_shard_is_named(tmp_path, format_):
    cache, _, _ = make(tmp_path, (5, 3), format_)
    shard(cache, 1).unlink()
    with pytest.raises(CacheError, match=r"001\.feat.*missing"):
        FeatureCache(tmp_path).verify()


def test_one_changed_bit_is_found_by_verify(tmp_path, format_):
    cache, _, _ = make(tmp_path, (50,), format_)
    path = shard(cache)
    raw = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(0, len(raw), 20):
        changed = bytearray(raw)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(CacheError, match="SHA-256"):
            FeatureCache(tmp_path).verify(sha256=True)


def test_a_damaged_shard_of_the_right_size_is_a_cache_error_and_never_another(tmp_path, format_):
    cache, rows, _ = make(tmp_path / "cache", (20,), format_)
    path = shard(cache)
    raw = path.read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for attempt in range(60):
        changed = bytearray(raw)
        if attempt < 5:
            changed = bytearray(random.bytes(len(raw)))
        for place in random.integers(0, len(raw) if attempt % 2 else min(len(raw), 256), 8):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        opened = FeatureCache(tmp_path / "cache", scratch=tmp_path / f"scratch{attempt}")
        try:
            opened.read(opened.manifest.shards[0])
        except CacheError:
            refused += 1
        try:
            assert opened[:].shape == rows.shape
        except CacheError:
            refused += 1
    assert refused >= 10


def test_edited_manifest_is_refused(tmp_path, format_):
    make(tmp_path, (5,), format_)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 5', '"rows": 4').replace('"source_rows": 5', '"source_rows": 4'))
    with pytest.raises(CacheError, match="edited"):
        FeatureCache(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', "\x00"])
def test_damaged_manifest_is_refused(tmp_path, text):
    make(tmp_path, (5,))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        FeatureCache(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("dtype", "float32", "dtype: 'float32' against 'float16'"),
        ("kind", "text", "kind: 'text' against 'image'"),
        ("how", {"decoder": "another"}, "how.decoder: 'another' against 'pil'"),
        ("encoder", EncoderCard(**{**CARD.__dict__, "weights_sha256": "cd" * 32}), "encoder.weights_sha256: 'cdcd"),
        ("encoder", EncoderCard(**{**CARD.__dict__, "logit_scale": 50.0}), "encoder.logit_scale: 50.0 against 100.0"),
    ],
)
@pytest.mark.parametrize("sealed", [True, False], ids=["finished", "unfinished"])
def test_another_plan_is_refused_and_the_field_named(tmp_path, field, value, named, sealed, digests):
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
    keys, rows = {name: keys_of(n) for name, n in counts}, {name: vectors(n, 4, n) for name, n in counts}

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
    with pytest.raises(CacheError, match="unfinished cache; run the same extract-features command again"):
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


@pytest.mark.parametrize(
    ("keys", "bad"),
    [(["a", "b"], []), (["a", "b", "c", "d"], []), (["a", "b"], [1, 1]), (["a", "b"], [3]), (["a", "b", "c"], [0])],
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
    with pytest.raises(CacheError, match=r"a\.tar, stored row 1: the vector is not finite as float16"):
        CacheWriter(tmp_path, header(format_), [("a.tar", 3)]).write("a.tar", ["x", "y", "z"], rows)


@pytest.mark.parametrize("key", ["a\tb", "a\nb", "a\0b", "a\rb", "\ufeffa", " a "])
def test_an_awkward_key_is_stored_as_it_is_or_refused_with_a_way_out(tmp_path, format_, key):
    writer = CacheWriter(tmp_path, header(format_), [("a.tar", 2)])
    try:
        writer.write("a.tar", ["x", key], vectors(2, 4))
    except CacheError as error:
        assert str(error).startswith("a.tar, row 1: the key") and "use --format" in str(error)
        return
    writer.seal()
    cache = FeatureCache(tmp_path)
    assert cache.read(cache.manifest.shards[0])[0] == ["x", key]


@pytest.mark.parametrize(
    "sources",
    [
        ["a.tar", "a.csv"],
        ["s.txt", "s.csv", "s.txt.gz"],
        ["s.txt.gz", "s.txt", "s.csv", "s.txt.gz.x"],
        ["x/a.tar", "y/a.tar"],
        ["photos", "photos.tar"],
        ["v1.5", "v1.6"],
        ["."],
    ],
)
def test_every_source_has_a_shard_file_of_its_own(tmp_path, format_, sources):
    writer = CacheWriter(tmp_path, header(format_), [(name, 1) for name in sources])
    for i, name in enumerate(sources):
        writer.write(name, [name], np.full((1, 4), i, dtype=np.float32))
    writer.seal()
    cache = FeatureCache(tmp_path)
    assert cache[:][:, 0].tolist() == list(range(len(sources)))
    assert len({info.file for info in cache.manifest.shards}) == len(sources)


def test_a_place_that_cannot_be_written_is_a_cache_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot be written.*choose another --out"):
        CacheWriter(tmp_path / "file" / "cache", header(), [("a.tar", 1)])


FINITE = st.floats(-60000, 60000, width=16)
SHARDS = st.integers(1, 5).flatmap(
    lambda dim: st.lists(
        st.integers(0, 6).flatmap(lambda n: hnp.arrays(np.float16, (n, dim), elements=FINITE)), min_size=1, max_size=4
    )
)
KEY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\0"), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shards=SHARDS, data=st.data())
def test_any_content_makes_the_round_trip(tmp_path_factory, format_, dtype, shards, data):
    root: Path = tmp_path_factory.mktemp("cache")
    keys = [data.draw(st.lists(KEY, min_size=len(rows), max_size=len(rows))) for rows in shards]
    sources = [(f"{i}", len(rows)) for i, rows in enumerate(shards)]
    writer = CacheWriter(root, header(format_, dtype, shards[0].shape[1]), sources)
    for (name, _), k, rows in zip(sources, keys, shards, strict=True):
        writer.write(name, k, rows.astype(np.float32))
    writer.seal()
    cache, expected = FeatureCache(root), np.concatenate(shards).astype(dtype)
    assert [cache.read(info)[0] for info in cache.manifest.shards] == keys
    wanted = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12)) if len(expected) else []
    np.testing.assert_array_equal(cache[wanted], expected[wanted])
    assert cache.verify(sha256=True) == len(shards)


BORDERS = (BLOCK - 1, BLOCK, BLOCK + 1, 0, 2 * BLOCK + 1)


@pytest.mark.parametrize("dim", [1, 3])
def test_row_counts_around_a_block_are_kept(tmp_path, format_, dim):
    cache, rows, keys = make(tmp_path, BORDERS, format_, dim=dim)
    np.testing.assert_array_equal(cache[:], rows)
    np.testing.assert_array_equal(cache[::-997], rows[::-997])
    for info, start in zip(cache.manifest.shards, cache.starts, strict=False):
        blocks = list(cache.blocks(info))
        assert all(0 < len(part) == len(found) <= BLOCK for part, found in blocks)
        np.testing.assert_array_equal(np.concatenate([rows[:0], *(found for _, found in blocks)]), rows[start:][: info.rows])
        assert [key for part, _ in blocks for key in part] == keys[start : start + info.rows]
    assert cache.verify(sha256=True) == len(BORDERS)


def fitted(rows, margin=0.5):
    fit = Fit(len(rows))
    fit.add(rows)
    return fit.code(margin)


def make_int8(root, counts, format_, dim=4, seed=0):
    """Write a cache of int8 rows; return (cache, the float rows, their code)."""
    rows = vectors(sum(counts), dim, seed)
    code = fitted(rows)
    sources, start = [(f"{i}.tar", n) for i, n in enumerate(counts)], 0
    writer = CacheWriter(root, header(format_, "int8", dim, code=code.fields()), sources)
    for name, n in sources:
        writer.write(name, keys_of(n, start), rows[start : start + n])
        start += n
    writer.seal()
    return FeatureCache(root), rows, code


@pytest.mark.parametrize(("counts", "dim"), [((5,), 4), ((3, 0, 2), 4), ((4, 1), 1), ((BLOCK + 1,), 2)], ids=str)
def test_int8_codes_are_stored_exactly_and_decode_within_half_a_step(tmp_path, format_, counts, dim):
    cache, rows, code = make_int8(tmp_path, counts, format_, dim)
    codes = np.rint((rows - code.offset) / code.scale)
    assert cache.stored(slice(None)).dtype == np.int8 and cache[:].dtype == np.float32
    np.testing.assert_array_equal(cache.stored(slice(None)), codes)
    np.testing.assert_array_equal(np.concatenate([cache.read(info)[1] for info in cache.manifest.shards]), codes)
    assert (np.abs(cache[:] - rows) <= code.scale * 0.5001 + 1e-7).all()
    np.testing.assert_array_equal(cache[:], codes.astype(np.float32) * code.scale + code.offset)
    np.testing.assert_array_equal(cache[[len(rows) - 1, 0]], cache[:][[-1, 0]])
    assert Code.of(cache.manifest.code).fields() == code.fields()
    assert cache.verify(sha256=True) == len(counts)


@pytest.mark.parametrize("value", [1e6, -1e6, np.nan, np.inf])
def test_a_value_outside_the_int8_code_is_refused_with_row_and_dimension(tmp_path, format_, value):
    rows = vectors(6, 4)
    code = fitted(rows)
    rows[4, 2] = value
    writer = CacheWriter(tmp_path, header(format_, "int8", code=code.fields()), [("a.tar", 6)])
    with pytest.raises(CacheError, match=r"a\.tar, .*row 4, dimension 2: .* outside the int8 code's .* to "):
        writer.write("a.tar", keys_of(6), rows)
    assert not [path for path in tmp_path.rglob("a.feat*") if path.is_file()]


def test_the_edge_of_the_int8_code_is_inside(tmp_path, format_):
    code = Code(np.full(2, 0.5, np.float32), np.array([0, 10], np.float32))
    edges = np.array([[-63.5, 73.5], [63.5, -53.5], [63.7, 73.7]], np.float32)
    writer = CacheWriter(tmp_path, header(format_, "int8", 2, code=code.fields()), [("a.tar", 3)])
    writer.write("a.tar", keys_of(3), edges)
    writer.seal()
    assert FeatureCache(tmp_path).stored(slice(None)).tolist() == [[-127, 127], [127, -127], [127, 127]]


def test_a_cache_of_views_says_how_many_rows_an_image_has(tmp_path, format_):
    how = {"decoder": "pil", "views": {"count": 3, "seed": 0}}
    writer = CacheWriter(tmp_path, header(format_, how=how), [("a.tar", 6), ("b.tar", 3)])
    writer.write("a.tar", keys_of(5), vectors(5, 4), [Bad(4, "k", "torn")])
    writer.write("b.tar", keys_of(3), vectors(3, 4))
    writer.seal()
    assert FeatureCache(tmp_path).manifest.views == 3
    assert header(format_).views == 1
    assert header(format_, how=how).fingerprint != header(format_).fingerprint


def with_bad(root, format_, dtype="float16"):
    """Write a cache of three shards, with bad first, adjacent and last rows and a shard of bad rows only."""
    code = {"code": fitted(vectors(20, 4)).fields()} if dtype == "int8" else {}
    bads = {"a.tar": [0, 3, 4, 9], "b/c.tar": [0, 1, 2], "d.tar": []}
    counts = {"a.tar": 10, "b/c.tar": 3, "d.tar": 5}
    writer = CacheWriter(root, header(format_, dtype, **code), list(counts.items()), {name: "ef" * 32 for name in counts})
    for name, n in counts.items():
        bad = [Bad(row, f"bad é {row}", f"torn at {row}") for row in bads[name]]
        good = n - len(bad)
        writer.write(name, keys_of(good, len(name)), vectors(20, 4)[:good], bad)
    writer.seal()
    return FeatureCache(root)


def content(cache):
    parts = [cache.read(info) for info in cache.manifest.shards]
    bad = list(quarantined(cache.store, cache.manifest))
    return [keys for keys, _ in parts], np.concatenate([rows for _, rows in parts]), bad


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize(("from_", "to"), [*itertools.permutations(FORMATS, 2), *((name, name) for name in FORMATS)])
def test_a_conversion_loses_nothing(tmp_path, from_, to, dtype, digests):
    old = with_bad(tmp_path / "old", from_, dtype)
    made = convert(old, tmp_path / "new", to)
    new = FeatureCache(tmp_path / "new")
    assert (made.format, made.dtype, made.fingerprint) == (to, dtype, old.manifest.fingerprint)
    (keys, rows, bad), (new_keys, new_rows, new_bad) = content(old), content(new)
    assert (new_keys, new_bad) == (keys, bad) and len(bad) == 7
    assert new_rows.dtype == rows.dtype and np.array_equal(new_rows, rows)
    assert [info.bad for info in made.shards] == [info.bad for info in old.manifest.shards]
    assert made.code == old.manifest.code
    assert new.verify(sha256=True) == 3
    convert(new, tmp_path / "back", from_)
    assert digests(tmp_path / "back") == digests(tmp_path / "old")


def test_an_interrupted_conversion_goes_on_at_the_next_shard(tmp_path, format_, monkeypatch, digests):
    old = with_bad(tmp_path / "old", "hdf5")
    convert(old, tmp_path / "whole", format_)
    write, written = CacheWriter.write, []

    def interrupted(self, source, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(source)
        return write(self, source, *rest)

    monkeypatch.setattr(CacheWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(old, tmp_path / "new", format_)
    with pytest.raises(CacheError, match="unfinished"):
        FeatureCache(tmp_path / "new")
    written[:] = []
    convert(old, tmp_path / "new", format_)
    assert written == ["d.tar"]
    assert digests(tmp_path / "new") == digests(tmp_path / "whole")
    convert(old, tmp_path / "new", format_)
    assert written == ["d.tar"]


def test_a_conversion_to_int8_fits_every_row_and_says_what_it_costs(tmp_path, format_):
    old, rows, _ = make(tmp_path / "old", (50, 30), "hdf5", "float32", dim=16)
    made = convert(old, tmp_path / "new", format_, "int8")
    new = FeatureCache(tmp_path / "new")
    scale = Code.of(made.code).scale
    np.testing.assert_allclose(scale * 254, rows.max(0) - rows.min(0), rtol=1e-5)
    assert (np.abs(new[:] - rows) <= scale * 0.5001 + 1e-6).all()
    cosines = (new[:] * rows).sum(1) / np.linalg.norm(new[:], axis=1) / np.linalg.norm(rows, axis=1)
    assert made.effect["rows"] == 80 and made.effect["logit_scale"] == CARD.logit_scale
    assert made.effect["min_cosine"] == pytest.approx(cosines.min(), abs=1e-6)
    assert made.effect["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert 0 < made.effect["kl"] < 0.1
    assert made.fingerprint == old.manifest.fingerprint
    again = convert(new, tmp_path / "again", "hdf5", "float32")
    assert again.code is None and again.fingerprint == made.fingerprint
    np.testing.assert_array_equal(FeatureCache(tmp_path / "again")[:], new[:])


def test_a_conversion_into_itself_or_into_another_cache_is_refused(tmp_path, digests):
    old, _, _ = make(tmp_path / "old", (5,))
    make(tmp_path / "other", (4,), "tsv")
    before = digests(tmp_path)
    with pytest.raises(CacheError, match="is the cache to convert"):
        convert(old, f"{tmp_path}/old/", "tsv")
    with pytest.raises(CacheError, match="already holds a cache made otherwise"):
        convert(old, tmp_path / "other", "tsv")
    assert digests(tmp_path) == before


def flat_files(root):
    return sorted(path for path in root.rglob("*.flat*") if path.is_file())


def test_a_flat_copy_is_sealed_and_an_altered_one_is_found(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5, 3), format_)
    np.testing.assert_array_equal(cache[:], rows)
    copies = [path for path in flat_files(tmp_path) if path.suffix == ".flat"]
    assert len(copies) == (0 if cache.manifest.shards[0].offset is not None else 2)
    for path in copies:
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(CacheError, match=r"\.flat: not as its seal says; remove .* it is made anew"):
            FeatureCache(tmp_path).verify(sha256=True)
        path.write_bytes(whole[:-1])
        with pytest.raises(CacheError, match=r"bytes, expected .*; remove .* it is made anew"):
            FeatureCache(tmp_path)[:]
        path.unlink()
        path.with_name(f"{path.name}.sha256").unlink()
        np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
        assert path.read_bytes() == whole
    assert FeatureCache(tmp_path).verify(sha256=True) == 2


def test_a_flat_copy_without_its_seal_is_made_anew(tmp_path, format_):
    cache, rows, _ = make(tmp_path, (5, 3), format_)
    cache[:]
    for path in flat_files(tmp_path):
        if path.suffix == ".sha256":
            path.unlink()
        else:
            path.write_bytes(b"\xff" * path.stat().st_size)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
    shutil.rmtree(tmp_path / ".flat", ignore_errors=True)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)


def test_flat_copies_go_to_the_scratch_folder_that_is_named(tmp_path, format_, digests):
    cache, rows, _ = make(tmp_path / "cache", (5, 3), format_)
    before = digests(tmp_path / "cache")
    for _ in range(2):
        np.testing.assert_array_equal(FeatureCache(tmp_path / "cache", tmp_path / "scratch")[:], rows)
    assert digests(tmp_path / "cache") == before
    assert len(flat_files(tmp_path / "scratch")) == (0 if cache.manifest.shards[0].offset is not None else 4)


def test_two_caches_may_share_a_scratch_folder(tmp_path, format_):
    made = [make(tmp_path / f"{seed}", (5, 3), format_, seed=seed)[:2] for seed in range(2)]
    for _ in range(2):
        for cache, rows in made:
            np.testing.assert_array_equal(FeatureCache(cache.root, tmp_path / "scratch")[:], rows)


def run_program(program, *arguments):
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


FORK = """
import os, sys, threading
import numpy as np
from dimefm.cache import FeatureCache

cache = FeatureCache(sys.argv[1])
if sys.argv[2] == "used":
    cache[0]
held, forked = threading.Event(), threading.Event()

def hold():
    with cache._lock:
        held.set()
        forked.wait()

if sys.argv[2] == "locked":
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
child = os.fork()
if child == 0:
    rows = cache[:]
    os._exit(0 if rows.tobytes() == np.load(sys.argv[3]).tobytes() else 9)
forked.set()
assert cache[:].tobytes() == np.load(sys.argv[3]).tobytes()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.parametrize("state", ["new", "used", "locked"])
def test_after_a_fork_parent_and_child_read_the_same_rows(tmp_path, format_, state):
    _, rows, _ = make(tmp_path / "cache", tuple([50] * 6), format_)
    np.save(tmp_path / "rows.npy", rows)
    run_program(FORK, tmp_path / "cache", state, tmp_path / "rows.npy")


SPAWN = """
import multiprocessing, sys
from dimefm.cache import FeatureCache

def total(cache):
    return cache[:].astype("f8").sum()

if __name__ == "__main__":
    cache = FeatureCache(sys.argv[1])
    cache[0]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(set(pool.map(total, [cache] * 4)) == {total(cache)})
"""


def test_spawned_workers_read_the_same_rows(tmp_path, format_):
    make(tmp_path / "cache", (50, 3), format_)
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = subprocess.run([sys.executable, tmp_path / "spawn.py", tmp_path / "cache"], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_a_cache_too_large_to_be_mapped_gives_the_same_rows(tmp_path, format_, monkeypatch):
    cache, rows, _ = make(tmp_path, (700, 0, 300), format_, dim=64)
    mapped, read = [], reader.mmap.mmap
    monkeypatch.setattr(reader.mmap, "mmap", lambda *given, **named: mapped.append(given) or read(*given, **named))
    monkeypatch.setattr(reader, "RESIDENT", rows.nbytes - 1)
    large = FeatureCache(tmp_path)
    draw = np.random.default_rng(0)
    for _ in range(20):
        wanted = draw.integers(0, len(rows), 40)
        np.testing.assert_array_equal(large[wanted], rows[wanted])
    for piece in (slice(None), slice(690, 710), slice(None, None, -7), slice(5, 5)):
        np.testing.assert_array_equal(large[piece], rows[piece])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(large))[[999, 0]], rows[[999, 0]])
    assert large.verify(sha256=True) == 3 and not mapped
    monkeypatch.setattr(reader, "RESIDENT", rows.nbytes)
    np.testing.assert_array_equal(FeatureCache(tmp_path)[:], rows)
    assert mapped


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_more_shards_than_may_be_open_at_once_are_read(tmp_path, format_, monkeypatch, resident):
    _, rows, _ = make(tmp_path, tuple([3] * 20), format_)
    for name, value in (("MAPS", 4), ("FILES", 4), ("RESIDENT", resident)):
        monkeypatch.setattr(reader, name, value)
    cache, draw = FeatureCache(tmp_path), np.random.default_rng(0)
    kept = cache[:2]
    for _ in range(10):
        wanted = draw.permutation(len(rows))
        np.testing.assert_array_equal(cache[wanted], rows[wanted])
        np.testing.assert_array_equal(cache[:], rows)
    np.testing.assert_array_equal(kept, rows[:2])


PEAK = """
def peak():
    import resource, sys
    try:
        with open("/proc/self/status") as file:  # of this program alone, not of what started it
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1 << 20)
"""
OPEN = f"""
import sys
from dimefm.cache import FeatureCache
{PEAK}
before = peak()
cache = FeatureCache(sys.argv[1])
assert len(cache) == 100_000_000
assert cache.locate(99_999_999)[1] == 9_999
print(peak() - before)
"""


def test_a_cache_of_a_hundred_million_rows_opens_in_a_hundred_megabytes(tmp_path, format_):
    info = make(tmp_path, (3,), format_)[0].manifest.shards[0]
    fields = {**info.__dict__, "source_rows": 10_003, "rows": 10_000, "bad": (7, 8, 5000), "bytes": 5_000_000}
    shards = [type(info)(**{**fields, "file": f"p/{i:05d}.feat.x", "source": f"p/{i:05d}.tar"}) for i in range(10_000)]
    (tmp_path / "manifest.json").write_text(header(format_, shards=tuple(shards)).to_json())
    assert int(run_program(OPEN, tmp_path)) < 100


@pytest.mark.slow
def test_millions_of_rows_make_the_round_trip(tmp_path, format_):
    n, dim = (3_000_000, 8) if format_ != "tsv" else (1_000_000, 8)
    rows = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float16)
    writer = CacheWriter(tmp_path, header(format_, dim=dim), [("a.tar", n)])
    writer.write("a.tar", [f"{i}" for i in range(n)], rows)
    writer.seal()
    cache = FeatureCache(tmp_path)
    assert np.array_equal(cache[:], rows)
    wanted = np.random.default_rng(1).integers(0, n, 100_000)
    assert np.array_equal(cache[wanted], rows[wanted])
    start = 0
    for keys, found in cache.blocks(cache.manifest.shards[0]):
        assert keys[0] == str(start) and np.array_equal(found, rows[start : start + len(found)])
        start += len(found)
    assert start == n and cache.verify(sha256=True) == 1


LONG = f"""
import sys
import numpy as np
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
{PEAK}
card = EncoderCard("test/card", None, 1, 100.0)
n = 20_000
writer = CacheWriter(sys.argv[1], Manifest("text", sys.argv[2], "float16", 1, False, card, {{}}, {{}}), [("a.txt", n)])
keys = ["k" * 20_000, *map(str, range(n - 1))]
writer.write("a.txt", keys, np.ones((n, 1), np.float16))
writer.seal()
cache = FeatureCache(sys.argv[1])
assert [key for part, _ in cache.blocks(cache.manifest.shards[0]) for key in part] == keys
print(peak())
"""


def test_one_long_key_does_not_make_all_others_as_long_in_memory(tmp_path, format_):
    assert int(run_program(LONG, tmp_path, format_)) < 300


def test_one_gather_over_a_large_cache_opens_no_more_shards_than_may_be_open(tmp_path, format_, monkeypatch):
    monkeypatch.setattr(reader, "RESIDENT", 0)
    monkeypatch.setattr(reader, "FILES", 3)
    made, rows, _ = make(tmp_path, tuple([2] * 24), format_)
    alive, opened = [], reader.Place

    class Watched(opened):
        def __init__(self, *args):
            super().__init__(*args)
            alive.append(weakref.ref(self))

        def read(self, start, out):
            assert sum(each() is not None for each in alive) <= 4
            super().read(start, out)

    monkeypatch.setattr(reader, "Place", Watched)
    wanted = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(FeatureCache(tmp_path)[wanted], rows[wanted])
    assert len(alive) == 24
