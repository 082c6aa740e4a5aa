"""The verb extract: rows in = rows out + rows quarantined; the cache holds what the encoder says; resume changes no byte."""

import dataclasses
import gzip
import itertools
import json

import numpy as np
import pytest

from dimefm import plugins, stages
from dimefm.cache import CacheWriter, FeatureCache
from dimefm.data import open_rows
from dimefm.data.align import align
from dimefm.data.images import decode
from dimefm.errors import BadRow, CacheError, DataError, RecipeError
from dimefm.extract import Settings, extract
from dimefm.models.encoder import load_encoder
from dimefm.share import Share

QUIET = Settings(progress=False, batch_size=4)
FORMATS = plugins.names("caches")


def run(encoder, sources, kind, out, **changes):
    """Extract and return (report, cache)."""
    columns = changes.pop("rows", {})
    rows = open_rows(sources, kind, **columns)
    report = extract(encoder, rows, kind, out, dataclasses.replace(QUIET, **changes))
    return report, FeatureCache(out)


def keys_of(cache):
    return [key for info in cache.manifest.shards for key in cache.read(info)[0]]


def quarantine(out):
    path = out / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def assert_adds_up(cache, out):
    for info in cache.manifest.shards:
        assert info.source_rows == info.rows + len(info.bad)
    listed = [(entry["source"], entry["row"]) for entry in quarantine(out)]
    assert listed == [(info.source, row) for info in cache.manifest.shards for row in info.bad]
    assert all(entry["reason"] for entry in quarantine(out))


@pytest.fixture
def photos(tmp_path, picture):
    """Return a folder of ten images in two classes, of different shapes and formats."""
    for i in range(10):
        format = ("PNG", "JPEG", "WEBP")[i % 3]
        path = tmp_path / "photos" / f"class{i % 2}" / f"{i}.{format.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, (20 + 7 * i, 90 - 5 * i), format))
    return tmp_path / "photos"


SENTENCES = [
    f"a photo of {n} {thing}" for n in ("one", "two", "three") for thing in ("cats", "red boats", "dogs in the snow")
]


@pytest.fixture
def shards(tmp_path):
    """Return text shards 0.txt .. 3.txt of different lengths (one of them empty)."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, n in enumerate((9, 1, 0, 6)):
        (folder / f"{i}.txt").write_text("".join(f"{sentence} {i}\n" for sentence in SENTENCES[:n]))
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("format_", FORMATS)
def test_the_cache_holds_what_the_encoder_says_of_each_image(tiny_teacher, photos, tmp_path, format_, dtype):
    settings = {"format": format_, "dtype": dtype, "decoder": "pil"}
    _, cache = run(tiny_teacher, [photos], "image", tmp_path / "out", **settings)
    rows = open_rows([photos], "image")
    assert keys_of(cache) == [row.key for row in rows]
    for row, stored in zip(rows, cache[:], strict=True):
        alone = tiny_teacher.encode_image(tiny_teacher.preprocess(decode(row.image))[None])[0].numpy()
        np.testing.assert_allclose(stored, alone, atol=1e-3 if dtype == "float16" else 1e-5)
    assert cache[:].dtype == dtype and cache.manifest.normalized
    np.testing.assert_allclose(np.linalg.norm(cache[:].astype(np.float32), axis=1), 1, atol=2e-3)
    assert np.abs(cache[:][0].astype(np.float32) - cache[:][1]).max() > 1e-2  # images differ, and so do their rows


def test_the_cache_holds_what_the_encoder_says_of_each_sentence(tiny_teacher, shards, tmp_path):
    _, cache = run(tiny_teacher, [shards], "text", tmp_path / "out")
    sentences = [row.texts[0] for row in open_rows([shards], "text")]
    assert len(cache) == len(sentences) == 16
    tokens, _ = tiny_teacher.tokenize(sentences)
    np.testing.assert_allclose(cache[:], tiny_teacher.encode_text(tokens).numpy(), atol=1e-3)


def test_the_manifest_says_who_made_it_and_how(tiny_teacher, shards, tmp_path):
    _, cache = run(tiny_teacher, [shards], "text", tmp_path / "out", captions="all", long_texts="truncate")
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


def test_odd_images_are_encoded_or_quarantined_as_expected(tiny_teacher, shared_data, tmp_path):
    folder = shared_data / "odd_images"
    report, cache = run(tiny_teacher, [folder], "image", tmp_path)
    expected = {entry["file"]: entry["expect"] for entry in json.loads((folder / "expect.json").read_text())}
    assert set(keys_of(cache)) == {file for file, expect in expected.items() if expect == "ok"}
    assert {entry["key"] for entry in quarantine(tmp_path)} == {
        file for file, expect in expected.items() if expect == "error"
    }
    assert_adds_up(cache, tmp_path)
    assert "22 rows in = 18 rows out + 4 quarantined" in report.describe()


def test_bad_images_are_quarantined_with_their_reason_and_shift_nothing(tiny_teacher, photos, tmp_path, picture):
    bad = {
        "class0/0a.png": (b"", "empty"),
        "class0/3.jpg": (picture(1, (50, 50), "JPEG")[:300], "image is damaged|not an image"),
        "class1/99.png": (b"version https://git-lfs", "not an image: 23 bytes that begin with b'version http"),
    }
    good = [row.key for row in open_rows([photos], "image")]
    for name, (data, _) in bad.items():
        (photos / name).write_bytes(data)
    (photos / "class1/gone.png").symlink_to("nowhere.png")
    report, cache = run(tiny_teacher, [photos], "image", tmp_path / "out")
    assert keys_of(cache) == good
    assert_adds_up(cache, tmp_path / "out")
    found = {entry["key"]: entry["reason"] for entry in quarantine(tmp_path / "out")}
    assert found.keys() == {*bad, "class1/gone.png"}
    for name, (_, reason) in bad.items():
        assert any(part in found[name] for part in reason.split("|"))
    raw, (stored,) = align(open_rows([photos], "image"), cache).locate(np.arange(len(cache)))
    every = open_rows([photos], "image")
    for number, row in zip(raw, cache[stored], strict=True):
        alone = tiny_teacher.encode_image(tiny_teacher.preprocess(decode(every[int(number)].image))[None])[0].numpy()
        np.testing.assert_allclose(row, alone, atol=1e-3)
    assert "quarantine.jsonl" in report.describe()


def test_a_source_of_bad_rows_only_is_refused_and_can_be_mended(tiny_teacher, tmp_path):
    (tmp_path / "x.txt").write_text("\n \n\t\n")
    with pytest.raises(DataError, match=r"none of the 3 rows could.*x\.txt row 0: sentence is empty; mend the source"):
        run(tiny_teacher, [tmp_path / "x.txt"], "text", tmp_path / "out")
    with pytest.raises(CacheError):
        FeatureCache(tmp_path / "out")
    (tmp_path / "x.txt").write_text("\na cat\n\n")
    _, cache = run(tiny_teacher, [tmp_path / "x.txt"], "text", tmp_path / "out")
    assert len(cache) == 1 and cache.manifest.shards[0].bad == (0, 2)


def test_empty_and_over_long_sentences_are_quarantined_with_their_reason(tiny_teacher, tmp_path):
    long = " ".join(["word"] * 31)
    lines = ["first", "", "   ", long, "last", " ".join(["word"] * 30)]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    _, cache = run(tiny_teacher, [tmp_path / "x.txt"], "text", tmp_path / "out")
    assert keys_of(cache) == ["0", "4", "5"]
    assert [(entry["row"], entry["reason"]) for entry in quarantine(tmp_path / "out")] == [
        (1, "sentence is empty"),
        (2, "sentence is empty"),
        (3, "sentence has 33 tokens, the encoder reads 32 (--long-texts truncate cuts it)"),
    ]
    assert_adds_up(cache, tmp_path / "out")
    _, cache = run(tiny_teacher, [tmp_path / "x.txt"], "text", tmp_path / "cut", long_texts="truncate")
    assert keys_of(cache) == ["0", "3", "4", "5"]
    assert [entry["row"] for entry in quarantine(tmp_path / "cut")] == [1, 2]


def test_an_over_long_sentence_with_the_token_of_number_0_is_found_too(tiny_teacher, tmp_path):
    sentence = "!| " + " ".join(["word"] * 50)
    assert 0 in tiny_teacher.tokenizer.encode(sentence)
    (tmp_path / "x.txt").write_text(f"{sentence}\nshort !|\n")
    _, cache = run(tiny_teacher, [tmp_path / "x.txt"], "text", tmp_path / "out")
    assert keys_of(cache) == ["1"]
    assert "sentence has 54 tokens" in quarantine(tmp_path / "out")[0]["reason"]


def test_half_characters_and_wrong_bytes_are_quarantined(tiny_teacher, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(
        b'{"text": "\\ud800 a"}\n{"text": "\xff"}\n{"text": "fine \\ud83d\\ude00"}\n{"key": "\\udcff", "text": 1}\n'
    )
    _, cache = run(tiny_teacher, [tmp_path / "x.jsonl"], "text", tmp_path / "out")
    assert keys_of(cache) == ["2"]
    assert [entry["key"] for entry in quarantine(tmp_path / "out")] == ["0", "1", "\\udcff"]


@pytest.fixture
def captioned(tmp_path):
    lines = [
        {"key": "a", "captions": ["a cat", "a red cat", "a cat on a mat"]},
        {"key": "b", "captions": "one dog"},
        {"key": "c", "captions": []},
        {"key": "d", "captions": ["a boat", "", "the sea"]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "x.jsonl"


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
        (4, "has no sentence (found an empty list) (source row 2, sentence 0, both counted from 0)"),
        (6, "sentence is empty (source row 3, sentence 1, both counted from 0)"),
    ]


def test_the_golden_captions_are_all_extracted(tiny_teacher, golden_tsv, tmp_path):
    rows = {"dataroot": golden_tsv}
    _, cache = run(tiny_teacher, [golden_tsv / "text.list"], "text", tmp_path, rows=rows)
    expected = json.loads((golden_tsv / "expected.json").read_text(encoding="utf-8"))
    assert keys_of(cache) == [entry["key"] for entry in expected["text"]]
    assert [info.source for info in cache.manifest.shards] == (golden_tsv / "text.list").read_text().split()


def test_several_sources_become_shards_one_to_one_in_order(tiny_teacher, shards, tmp_path):
    (tmp_path / "more.jsonl").write_text('"a quoted cat"\n')
    (tmp_path / "zipped.txt.gz").write_bytes(gzip.compress(b"a zipped cat\n"))
    sources = [tmp_path / "zipped.txt.gz", shards, tmp_path / "more.jsonl"]
    _, cache = run(tiny_teacher, sources, "text", tmp_path / "out")
    names = ["zipped.txt.gz", *(f"texts/{i}.txt" for i in range(4)), "more.jsonl"]
    assert [info.source for info in cache.manifest.shards] == names
    assert [info.rows for info in cache.manifest.shards] == [1, 9, 1, 0, 6, 1]
    assert all((tmp_path / "out" / info.file).is_file() for info in cache.manifest.shards)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_same_command_twice_says_finished_and_changes_nothing(tiny_teacher, shards, tmp_path, format_, digests):
    run(tiny_teacher, [shards], "text", tmp_path / "out", format=format_)
    before = digests(tmp_path / "out")
    again = extract(
        tiny_teacher, open_rows([shards], "text"), "text", tmp_path / "out", dataclasses.replace(QUIET, format=format_)
    )
    assert again.already_finished and again.rows_done == 0
    assert "finished already, 16 rows; nothing to do" in again.describe()
    assert digests(tmp_path / "out") == before


class Cut:
    """An encoder that is interrupted when it has encoded ``batches`` batches; with ``one_lane`` the first ones."""

    def __init__(self, encoder, batches):
        self.encoder, self.left = encoder, batches

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_text(self, tokens):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.encoder.encode_text(tokens)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("batches", [0, 2, 3, 4, 5])
def test_an_interrupted_extraction_goes_on_and_ends_with_the_same_bytes(
    tiny_teacher, shards, tmp_path, format_, batches, digests, one_lane
):
    run(tiny_teacher, [shards], "text", tmp_path / "whole", format=format_)
    with pytest.raises(KeyboardInterrupt):
        run(Cut(tiny_teacher, batches), [shards], "text", tmp_path / "cut", format=format_)
    with pytest.raises(CacheError, match="unfinished cache"):
        FeatureCache(tmp_path / "cut")
    report, cache = run(tiny_teacher, [shards], "text", tmp_path / "cut", format=format_)
    finished = sum(1 for end in (3, 4, 4) if batches >= end)  # shard 0 takes three batches, shard 1 one, shard 2 none
    assert report.resumed == finished
    assert report.rows_done == 16 - sum((9, 1, 0)[:finished])
    del cache
    flat = {"cut/.flat", "whole/.flat"}
    assert not any((tmp_path / name).exists() for name in flat)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "float32"}, "dtype: 'float32' against 'float16'"),
        ({"format": "parquet"}, "format: 'parquet' against 'hdf5'"),
        ({"captions": "all"}, "how.captions: 'all' against 'first'"),
        ({"long_texts": "truncate"}, "how.long_texts: 'truncate' against 'quarantine'"),
    ],
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_other_settings_in_the_same_folder_are_refused_and_named(tiny_teacher, shards, tmp_path, changes, named, finished):
    if finished:
        run(tiny_teacher, [shards], "text", tmp_path / "out")
    else:
        with pytest.raises(KeyboardInterrupt):
            run(Cut(tiny_teacher, 3), [shards], "text", tmp_path / "out")
    with pytest.raises(CacheError) as caught:
        run(tiny_teacher, [shards], "text", tmp_path / "out", **changes)
    assert named in str(caught.value) and "give another --out" in str(caught.value)


def test_another_teacher_precision_or_source_in_the_same_folder_is_refused_and_named(tiny_teacher, shards, tmp_path):
    run(tiny_teacher, [shards], "text", tmp_path / "out")
    other = load_encoder("ResNet-mini-64/random:1", "cpu")
    with pytest.raises(CacheError, match="encoder.weights_sha256"):
        run(other, [shards], "text", tmp_path / "out")
    rounded = dataclasses.replace(tiny_teacher, precision="bf16")
    with pytest.raises(CacheError, match=r"how\.precision: 'bf16' against 'fp32'"):
        run(rounded, [shards], "text", tmp_path / "out")
    with pytest.raises(CacheError, match="sources only in the folder"):
        run(tiny_teacher, [shards / "0.txt"], "text", tmp_path / "out")
    (shards / "3.txt").write_text("one more\n" * 7)
    with pytest.raises(CacheError, match=r"rows of source 3\.txt: 7 against"):
        run(tiny_teacher, [shards], "text", tmp_path / "out")


def test_who_goes_on_takes_the_precision_of_the_plan(tiny_teacher, shards, tmp_path, monkeypatch):
    settings, rows = dataclasses.replace(QUIET, auto_precision=True), open_rows([shards], "text")
    for part, precision in enumerate(("bf16", "fp32")):  # the second machine would choose otherwise
        monkeypatch.setattr(stages, "chosen", lambda device, compiled, precision=precision: (precision, "a test says so"))
        extract(tiny_teacher, rows, "text", tmp_path / "out", settings, share=Share(part=part, parts=2))
    rounded = dataclasses.replace(tiny_teacher, precision="bf16")
    _, whole = run(rounded, [shards], "text", tmp_path / "whole")
    assert FeatureCache(tmp_path / "out").manifest.fingerprint == whole.manifest.fingerprint


def test_a_key_that_the_format_cannot_hold_ends_with_a_way_out(tiny_teacher, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"key": "a\\tb", "text": "a cat"}\n')
    with pytest.raises(CacheError, match=r"x\.jsonl, row 0: the key 'a\\tb' cannot stand in a TSV; use --format hdf5"):
        run(tiny_teacher, [tmp_path / "x.jsonl"], "text", tmp_path / "tsv", format="tsv")
    assert keys_of(run(tiny_teacher, [tmp_path / "x.jsonl"], "text", tmp_path / "h5")[1]) == ["a\tb"]


def test_a_feature_that_is_not_finite_is_quarantined_and_not_stored(tiny_teacher, shards, tmp_path):
    lines = (shards / "0.txt").read_text().splitlines()
    tokens_of = {row: tiny_teacher.tokenize([lines[row]])[0][0] for row in (1, 5)}

    class Broken(Cut):
        def encode_text(self, tokens):
            found = self.encoder.encode_text(tokens).clone()
            found[(tokens == tokens_of[1]).all(1)] = float("inf")
            found[(tokens == tokens_of[5]).all(1)] = 0.0
            return found

    _, cache = run(Broken(tiny_teacher, 0), [shards / "0.txt"], "text", tmp_path / "out")
    assert [entry["row"] for entry in quarantine(tmp_path / "out")] == [1, 5]
    assert all("not finite or has no length" in entry["reason"] for entry in quarantine(tmp_path / "out"))
    assert np.isfinite(cache[:]).all()
    assert_adds_up(cache, tmp_path / "out")


def test_an_index_that_does_not_fit_ends_the_job_and_leaves_no_cache(tiny_teacher, golden_tsv, tmp_path):
    lines = (golden_tsv / "GCC-3M/tsv/text_00.tsv").read_bytes()
    (tmp_path / "text_00.tsv").write_bytes(lines)
    (tmp_path / "text_00.lineidx").write_text("0\n60\n100\n")
    with pytest.raises(DataError, match="text_00.tsv, row 0: .*does not fit") as caught:
        run(tiny_teacher, [tmp_path / "text_00.tsv"], "text", tmp_path / "out")
    assert not isinstance(caught.value, BadRow)
    with pytest.raises(CacheError, match="unfinished"):
        FeatureCache(tmp_path / "out")


@pytest.mark.parametrize("changes", [{"captions": "some"}, {"long_texts": "drop"}])
def test_an_unknown_setting_is_refused(tiny_teacher, shards, tmp_path, changes):
    with pytest.raises(RecipeError, match="expected one of"):
        run(tiny_teacher, [shards], "text", tmp_path / "out", **changes)
    with pytest.raises(CacheError, match="unknown format 'hdf': did you mean 'hdf5'"):
        run(tiny_teacher, [shards], "text", tmp_path / "out", format="hdf")


def test_the_report_tells_rows_bytes_and_seconds(tiny_teacher, photos, tmp_path):
    report, _ = run(tiny_teacher, [photos], "image", tmp_path / "out")
    text = report.describe()
    assert "10 rows in = 10 rows out + 0 quarantined" in text and "bytes/row" in text and "rows/s" in text
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


def test_a_source_that_changed_under_the_same_keys_is_not_taken_for_finished(tiny_teacher, tmp_path):
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("a red cat\na blue dog\n")
    run(tiny_teacher, [sentences], "text", tmp_path / "out")
    sentences.write_text("a blue dog\na red cat\n")
    with pytest.raises(CacheError, match="already holds a cache made otherwise .content of source sentences.txt: digest"):
        run(tiny_teacher, [sentences], "text", tmp_path / "out")
