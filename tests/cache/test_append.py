"""A finished cache grows by new shards: nothing else of it changes, and what does not fit is
refused, as for a retry.
"""

import numpy as np
import pytest

from dimefm.cache import FeatureCache
from dimefm.cache.convert import convert
from dimefm.cache.plan import write_lock
from dimefm.errors import CacheError
from dimefm.models.loading import load_encoder
from tests.cache.growing import assert_adds_up, bad_rows, named, run, stamps, text_shard


def test_new_shards_come_after_the_old_ones_which_stay_untouched(
    tiny_teacher, texts, tmp_path, format_, dtype, wide
):
    texts.shard("b", 5, [2])
    texts.shard("c", 4)
    _, old = run(tiny_teacher, texts.rows(), "text", tmp_path / "out", format=format_, dtype=dtype)
    before, kept = stamps(old), named(old)
    texts.shard("a", 3, [0])
    texts.shard("d", 1)
    report, new = run(
        tiny_teacher, texts.rows(), "text", tmp_path / "out", "append", format=format_, dtype=dtype
    )
    assert [info.source for info in new.manifest.shards] == ["b.txt", "c.txt", "a.txt", "d.txt"]
    assert before.items() <= stamps(new).items() and kept.items() <= named(new).items()
    np.testing.assert_array_equal(new[: len(old)], old[:])
    assert report.rows_done == 4 and bad_rows(new) == [("b.txt", 2), ("a.txt", 0)]
    assert (
        new.manifest.code == old.manifest.code
        and new.manifest.fingerprint != old.manifest.fingerprint
    )
    assert_adds_up(new)
    tokens, _ = tiny_teacher.tokenize(["photo 0 of d"])
    np.testing.assert_allclose(
        new[len(new) - 1], tiny_teacher.encode_text(tokens)[0].numpy(), atol=0.02
    )


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
        report, cache = run(
            tiny_teacher, texts.rows(), "text", tmp_path / "out", mode, format=format_
        )
        assert report.already_finished and report.rows_done == 0
        assert digests(tmp_path / "out") == before
    assert_adds_up(cache)


def test_a_finished_cache_is_read_while_another_process_appends_to_it(
    tiny_teacher, texts, tmp_path
):
    texts.shard("a", 3)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    record = tmp_path / "out/.partial/b.json"
    with write_lock(tmp_path / "out", shared=False):
        record.write_text("what the other process has finished")
        report, _ = run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
        assert report.already_finished and record.exists()
        with pytest.raises(CacheError, match="another process is writing there"):
            run(tiny_teacher, texts.rows(), "text", tmp_path / "out", "append")
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    assert not record.parent.exists()


def test_without_append_new_shards_are_refused_and_the_flag_is_named(
    tiny_teacher, texts, tmp_path, digests
):
    texts.shard("a", 3)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    before = digests(tmp_path / "out")
    texts.shard("b", 3)
    with pytest.raises(CacheError, match=r"sources only here: b\.txt.*--append"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize("rows", [3, 4], ids=["other-content", "other-count"])
def test_appending_to_changed_sources_is_refused_and_the_source_is_named(
    tiny_teacher, texts, tmp_path, digests, rows
):
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
def test_other_settings_or_another_teacher_are_refused_and_named(
    tiny_teacher, texts, tmp_path, digests, mode
):
    texts.shard("a", 3, [1])
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out")
    before = digests(tmp_path / "out")
    texts.shard("b" if mode == "append" else "a", 3)
    with pytest.raises(CacheError, match="dtype: 'float32' against 'float16'"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out", mode, dtype="float32")
    with pytest.raises(CacheError, match="how.captions"):
        run(tiny_teacher, texts.rows(), "text", tmp_path / "out", mode, captions="all")
    with pytest.raises(CacheError, match=r"encoder\.weights_sha256"):
        run(
            load_encoder("ResNet-mini-64/random:1", "cpu"),
            texts.rows(),
            "text",
            tmp_path / "out",
            mode,
        )
    assert digests(tmp_path / "out") == before


def test_a_second_teacher_over_the_same_rows_leaves_the_first_cache_alone(
    tiny_teacher, texts, tmp_path, digests
):
    texts.shard("a", 3, [1])
    _, first = run(tiny_teacher, texts.rows(), "text", tmp_path / "one")
    before = digests(tmp_path / "one")
    _, second = run(
        load_encoder("ResNet-mini-64/random:1", "cpu"), texts.rows(), "text", tmp_path / "two"
    )
    assert digests(tmp_path / "one") == before
    assert second.manifest.encoder.weights_sha256 != first.manifest.encoder.weights_sha256
    assert [info.keys_sha256 for info in second.manifest.shards] == [
        info.keys_sha256 for info in first.manifest.shards
    ]
    assert np.abs(second[:].astype("f4") - first[:]).max() > 0.01


def test_parquet_is_float32_by_default_and_an_older_float16_cache_grows_as_it_is(
    tiny_teacher, texts, tmp_path, digests
):
    """DuckDB reads no float16 from Parquet; caches of before have it."""
    texts.shard("a", 6)
    _, new = run(tiny_teacher, texts.rows(), "text", tmp_path / "new", format="parquet")
    assert new.manifest.dtype == "float32"
    run(tiny_teacher, texts.rows(), "text", tmp_path / "old", format="parquet", dtype="float16")
    before = digests(tmp_path / "old")
    report, _ = run(tiny_teacher, texts.rows(), "text", tmp_path / "old", format="parquet")
    assert report.already_finished and digests(tmp_path / "old") == before
    texts.shard("b", 3)
    _, grown = run(tiny_teacher, texts.rows(), "text", tmp_path / "old", "append", format="parquet")
    assert grown.manifest.dtype == "float16" and len(grown) == 9
    assert digests(tmp_path / "old")["a.feat.parquet"] == before["a.feat.parquet"]


def test_a_conversion_to_parquet_widens_float16_unless_it_was_begun_so(
    tiny_teacher, texts, tmp_path
):
    texts.shard("a", 6)
    _, cache = run(tiny_teacher, texts.rows(), "text", tmp_path / "cache")
    assert cache.manifest.dtype == "float16"
    assert convert(cache, tmp_path / "wide", "parquet").dtype == "float32"
    wide = FeatureCache(tmp_path / "wide")
    assert (wide[:] == cache[:]).all()
    convert(cache, tmp_path / "narrow", "parquet", "float16")
    assert convert(cache, tmp_path / "narrow", "parquet").dtype == "float16"
    assert convert(wide, tmp_path / "back", "hdf5", "float16").dtype == "float16"
    assert (FeatureCache(tmp_path / "back").stored(slice(None)) == cache.stored(slice(None))).all()
