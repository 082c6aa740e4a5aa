"""Every shard format gives back what was written, in any order; a new file in ``cache/formats/`` is
tested too.
"""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dimefm.cache import CacheWriter, FeatureCache
from dimefm.cache.formats import BLOCK
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError
from tests.contracts.formats.conftest import header, keys_of, make, vectors


@pytest.mark.parametrize(
    ("counts", "dim"),
    [
        ((5,), 4),
        ((1,), 4),
        ((3, 0, 2), 4),
        ((0,), 4),
        ((4, 1), 1),
        (tuple([2] * 30), 3),
        ((700,), 16),
    ],
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


FINITE = st.floats(-60000, 60000, width=16)
SHARDS = st.integers(1, 5).flatmap(
    lambda dim: st.lists(
        st.integers(0, 6).flatmap(lambda n: hnp.arrays(np.float16, (n, dim), elements=FINITE)),
        min_size=1,
        max_size=4,
    )
)
KEY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\0"), max_size=12)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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
    wanted = (
        data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12)) if len(expected) else []
    )
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
        np.testing.assert_array_equal(
            np.concatenate([rows[:0], *(found for _, found in blocks)]), rows[start:][: info.rows]
        )
        assert [key for part, _ in blocks for key in part] == keys[start : start + info.rows]
    assert cache.verify(sha256=True) == len(BORDERS)


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


def test_a_cache_of_views_says_how_many_rows_an_image_has(tmp_path, format_):
    how = {"decoder": "pil", "views": {"count": 3, "seed": 0}}
    writer = CacheWriter(tmp_path, header(format_, how=how), [("a.tar", 6), ("b.tar", 3)])
    writer.write("a.tar", keys_of(5), vectors(5, 4), [Bad(4, "k", "torn")])
    writer.write("b.tar", keys_of(3), vectors(3, 4))
    writer.seal()
    assert FeatureCache(tmp_path).manifest.views == 3
    assert header(format_).views == 1
    assert header(format_, how=how).fingerprint != header(format_).fingerprint
