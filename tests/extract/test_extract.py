"""The verb extract: the cache holds what the encoder says of every row, in order, and says who made
it and how.
"""

import dataclasses
import gzip
import itertools
import json

import numpy as np
import pytest

from dimefm import plugins
from dimefm.cache import CacheWriter
from dimefm.data import open_rows
from dimefm.data.images.decode import decode
from dimefm.errors import CacheError, RecipeError
from tests.extract.conftest import assert_adds_up, keys_of, quarantine, run

FORMATS = plugins.names("caches")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("format_", FORMATS)
def test_the_cache_holds_what_the_encoder_says_of_each_image(
    tiny_teacher, photos, tmp_path, format_, dtype
):
    settings = {"format": format_, "dtype": dtype, "decoder": "pil"}
    _, cache = run(tiny_teacher, [photos], "image", tmp_path / "out", **settings)
    rows = open_rows([photos], "image")
    assert keys_of(cache) == [row.key for row in rows]
    for row, stored in zip(rows, cache[:], strict=True):
        alone = tiny_teacher.encode_image(tiny_teacher.preprocess(decode(row.image))[None])[
            0
        ].numpy()
        np.testing.assert_allclose(stored, alone, atol=1e-3 if dtype == "float16" else 1e-5)
    assert cache[:].dtype == dtype and cache.manifest.normalized
    np.testing.assert_allclose(np.linalg.norm(cache[:].astype(np.float32), axis=1), 1, atol=2e-3)
    assert (
        np.abs(cache[:][0].astype(np.float32) - cache[:][1]).max() > 1e-2
    )  # images differ, and so do their rows


def test_the_cache_holds_what_the_encoder_says_of_each_sentence(tiny_teacher, shards, tmp_path):
    _, cache = run(tiny_teacher, [shards], "text", tmp_path / "out")
    sentences = [row.texts[0] for row in open_rows([shards], "text")]
    assert len(cache) == len(sentences) == 16
    tokens, _ = tiny_teacher.tokenize(sentences)
    np.testing.assert_allclose(cache[:], tiny_teacher.encode_text(tokens).numpy(), atol=1e-3)


def test_the_manifest_says_who_made_it_and_how(tiny_teacher, shards, tmp_path):
    _, cache = run(
        tiny_teacher, [shards], "text", tmp_path / "out", captions="all", long_texts="truncate"
    )
    manifest = cache.manifest
    assert manifest.encoder == tiny_teacher.card and "random:0" in manifest.encoder.name
    assert manifest.how == {"precision": "fp32", "captions": "all", "long_texts": "truncate"}
    assert [(info.source, info.source_rows) for info in manifest.shards] == [
        (f"{i}.txt", n) for i, n in enumerate((9, 1, 0, 6))
    ]
    assert {"torch", "open_clip_torch", "numpy", "dimefm"} <= set(manifest.libraries)


def test_the_result_does_not_depend_on_batches_and_threads(tiny_teacher, photos, tmp_path):
    found = [
        run(
            tiny_teacher,
            [photos],
            "image",
            tmp_path / f"{size}-{workers}",
            dtype="float32",
            batch_size=size,
            workers=workers,
        )[1]
        for size, workers in ((1, 1), (3, 4), (100, 2))
    ]
    for cache in found[1:]:
        assert keys_of(cache) == keys_of(found[0])
        np.testing.assert_allclose(cache[:], found[0][:], atol=1e-5)
        assert cache.manifest.fingerprint == found[0].manifest.fingerprint


def test_the_first_caption_counts_unless_all_are_asked_for(tiny_teacher, captioned, tmp_path):
    report, first = run(tiny_teacher, [captioned], "text", tmp_path / "first")
    assert keys_of(first) == ["a", "b", "d"]
    assert "4 further captions" in report.describe()
    _, every = run(tiny_teacher, [captioned], "text", tmp_path / "all", captions="all")
    assert keys_of(every) == ["a#0", "a#1", "a#2", "b#0", "d#0", "d#2"]
    np.testing.assert_array_equal(every[[0, 3, 4]], first[:])
    assert len(np.unique(every[:], axis=0)) == 6
    assert_adds_up(every, tmp_path / "all")
    assert [(entry["row"], entry["reason"]) for entry in quarantine(tmp_path / "all")] == [
        (
            4,
            "has no sentence (found an empty list) (source row 2, sentence 0, both counted from 0)",
        ),
        (6, "sentence is empty (source row 3, sentence 1, both counted from 0)"),
    ]


def test_the_golden_captions_are_all_extracted(tiny_teacher, golden_tsv, tmp_path):
    rows = {"dataroot": golden_tsv}
    _, cache = run(tiny_teacher, [golden_tsv / "text.list"], "text", tmp_path, rows=rows)
    expected = json.loads((golden_tsv / "expected.json").read_text(encoding="utf-8"))
    assert keys_of(cache) == [entry["key"] for entry in expected["text"]]
    assert [info.source for info in cache.manifest.shards] == (
        golden_tsv / "text.list"
    ).read_text().split()


def test_several_sources_become_shards_one_to_one_in_order(tiny_teacher, shards, tmp_path):
    (tmp_path / "more.jsonl").write_text('"a quoted cat"\n')
    (tmp_path / "zipped.txt.gz").write_bytes(gzip.compress(b"a zipped cat\n"))
    sources = [tmp_path / "zipped.txt.gz", shards, tmp_path / "more.jsonl"]
    _, cache = run(tiny_teacher, sources, "text", tmp_path / "out")
    names = ["zipped.txt.gz", *(f"texts/{i}.txt" for i in range(4)), "more.jsonl"]
    assert [info.source for info in cache.manifest.shards] == names
    assert [info.rows for info in cache.manifest.shards] == [1, 9, 1, 0, 6, 1]
    assert all((tmp_path / "out" / info.file).is_file() for info in cache.manifest.shards)


def test_the_report_tells_rows_bytes_and_seconds(tiny_teacher, photos, tmp_path):
    report, _ = run(tiny_teacher, [photos], "image", tmp_path / "out")
    text = report.describe()
    assert (
        "10 rows in = 10 rows out + 0 quarantined" in text
        and "bytes/row" in text
        and "rows/s" in text
    )
    assert all(f"{stage} " in text for stage in ("read", "decode", "encode", "write"))
    assert all(report.seconds[stage] > 0 for stage in ("read", "decode", "encode", "write"))
    assert list(itertools.chain.from_iterable(info.bad for info in report.manifest.shards)) == []


def test_writer_and_reader_agree_that_nothing_is_left_over(tiny_teacher, shards, tmp_path):
    _, cache = run(tiny_teacher, [shards], "text", tmp_path / "out")
    assert not (tmp_path / "out/.partial").exists() and not list((tmp_path / "out").rglob("*.part"))
    assert cache.verify(sha256=True) == 4
    sources = [(info.source, info.source_rows) for info in cache.manifest.shards]
    digests = {info.source: info.source_digest for info in cache.manifest.shards}
    header = dataclasses.replace(cache.manifest, shards=())
    assert CacheWriter(tmp_path / "out", header, sources, digests).finished is not None


@pytest.mark.parametrize("changes", [{"captions": "some"}, {"long_texts": "drop"}])
def test_an_unknown_setting_is_refused(tiny_teacher, shards, tmp_path, changes):
    with pytest.raises(RecipeError, match="expected one of"):
        run(tiny_teacher, [shards], "text", tmp_path / "out", **changes)


def test_an_unknown_format_is_refused_with_a_suggestion(tiny_teacher, shards, tmp_path):
    with pytest.raises(CacheError, match="unknown format 'hdf': did you mean 'hdf5'"):
        run(tiny_teacher, [shards], "text", tmp_path / "out", format="hdf")
