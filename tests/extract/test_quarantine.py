"""Rows in = rows out + rows quarantined: what cannot be used is listed with its reason, and shifts
nothing.
"""

import json

import numpy as np
import pytest

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.data.alignment import align
from dimefm.data.images.decode import decode
from dimefm.errors import BadRow, CacheError, DataError
from tests.extract.conftest import assert_adds_up, keys_of, quarantine, run


def test_odd_images_are_encoded_or_quarantined_as_expected(tiny_teacher, shared_data, tmp_path):
    folder = shared_data / "odd_images"
    report, cache = run(tiny_teacher, [folder], "image", tmp_path)
    expected = {
        entry["file"]: entry["expect"] for entry in json.loads((folder / "expect.json").read_text())
    }
    assert set(keys_of(cache)) == {file for file, expect in expected.items() if expect == "ok"}
    assert {entry["key"] for entry in quarantine(tmp_path)} == {
        file for file, expect in expected.items() if expect == "error"
    }
    assert_adds_up(cache, tmp_path)
    assert "22 rows in = 18 rows out + 4 quarantined" in report.describe()


def test_bad_images_are_quarantined_with_their_reason_and_shift_nothing(
    tiny_teacher, photos, tmp_path, picture
):
    bad = {
        "class0/0a.png": (b"", "empty"),
        "class0/3.jpg": (picture(1, (50, 50), "JPEG")[:300], "image is damaged|not an image"),
        "class1/99.png": (
            b"version https://git-lfs",
            "not an image: 23 bytes that begin with b'version http",
        ),
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
        alone = tiny_teacher.encode_image(
            tiny_teacher.preprocess(decode(every[int(number)].image))[None]
        )[0].numpy()
        np.testing.assert_allclose(row, alone, atol=1e-3)
    assert "quarantine.jsonl" in report.describe()


def test_a_source_of_bad_rows_only_is_refused_and_can_be_mended(tiny_teacher, tmp_path):
    (tmp_path / "x.txt").write_text("\n \n\t\n")
    with pytest.raises(
        DataError,
        match=r"none of the 3 rows could.*x\.txt row 0: sentence is empty. Fix: correct the source",
    ):
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
    _, cache = run(
        tiny_teacher, [tmp_path / "x.txt"], "text", tmp_path / "cut", long_texts="truncate"
    )
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
        b'{"text": "\\ud800 a"}\n{"text": "\xff"}\n{"text": "fine \\ud83d\\ude00"}\n{"key":'
        b' "\\udcff", "text": 1}\n'
    )
    _, cache = run(tiny_teacher, [tmp_path / "x.jsonl"], "text", tmp_path / "out")
    assert keys_of(cache) == ["2"]
    assert [entry["key"] for entry in quarantine(tmp_path / "out")] == ["0", "1", "\\udcff"]


def test_a_feature_that_is_not_finite_is_quarantined_and_not_stored(tiny_teacher, shards, tmp_path):
    lines = (shards / "0.txt").read_text().splitlines()
    tokens_of = {row: tiny_teacher.tokenize([lines[row]])[0][0] for row in (1, 5)}

    class Broken:
        def __getattr__(self, name):
            return getattr(tiny_teacher, name)

        def encode_text(self, tokens):
            found = tiny_teacher.encode_text(tokens).clone()
            found[(tokens == tokens_of[1]).all(1)] = float("inf")
            found[(tokens == tokens_of[5]).all(1)] = 0.0
            return found

    _, cache = run(Broken(), [shards / "0.txt"], "text", tmp_path / "out")
    assert [entry["row"] for entry in quarantine(tmp_path / "out")] == [1, 5]
    assert all(
        "not finite or has no length" in entry["reason"] for entry in quarantine(tmp_path / "out")
    )
    assert np.isfinite(cache[:]).all()
    assert_adds_up(cache, tmp_path / "out")


def test_a_key_that_the_format_cannot_hold_ends_with_a_way_out(tiny_teacher, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"key": "a\\tb", "text": "a cat"}\n')
    with pytest.raises(
        CacheError,
        match=r"x\.jsonl, row 0: the key 'a\\tb' cannot stand in a TSV. Fix: use --format hdf5",
    ):
        run(tiny_teacher, [tmp_path / "x.jsonl"], "text", tmp_path / "tsv", format="tsv")
    assert keys_of(run(tiny_teacher, [tmp_path / "x.jsonl"], "text", tmp_path / "h5")[1]) == [
        "a\tb"
    ]


def test_an_index_that_does_not_fit_ends_the_job_and_leaves_no_cache(
    tiny_teacher, golden_tsv, tmp_path
):
    lines = (golden_tsv / "GCC-3M/tsv/text_00.tsv").read_bytes()
    (tmp_path / "text_00.tsv").write_bytes(lines)
    (tmp_path / "text_00.lineidx").write_text("0\n60\n100\n")
    with pytest.raises(DataError, match="text_00.tsv, row 0: .*does not fit") as caught:
        run(tiny_teacher, [tmp_path / "text_00.tsv"], "text", tmp_path / "out")
    assert not isinstance(caught.value, BadRow)
    with pytest.raises(CacheError, match="no cache"):
        FeatureCache(tmp_path / "out")
