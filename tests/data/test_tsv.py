"""DIME-FM's TSV as a raw source: caption forms, line indices that do not fit, line lists, awkward
bytes.
"""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.data import open_rows
from dimefm.data.formats.tsv import captions, read_offsets
from dimefm.errors import BadRow, DataError

# the release draws one of 81 prompts; a cached feature must belong to one fixed sentence
GOLDEN_DEVIATION = {
    "gcc_txt_003": ("a photo of a sunflower.",),
    "gcc_txt_004": ("a photo of a tabby cat.",),
}


def test_all_nine_caption_forms_of_the_golden_example(golden_tsv):
    expected = json.loads((golden_tsv / "expected.json").read_text(encoding="utf-8"))["text"]
    rows = open_rows([golden_tsv / "text.list"], "text", dataroot=golden_tsv)
    assert [len(shard) for shard in rows.shards] == [5, 4]
    assert [row.key for row in rows] == [entry["key"] for entry in expected]
    assert len(expected) == 9
    for row, entry in zip(rows, expected, strict=True):
        assert row.texts == GOLDEN_DEVIATION.get(row.key, tuple(entry["decoded"]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"captions": ["a", "b"]}', ("a", "b")),
        ('{"captions": "a"}', ("a",)),
        ('{"caption": "a"}', ("a",)),
        ('{"caption": ["a", "b"]}', ("a", "b")),
        ('{"text": "a"}', ("a",)),
        ('{"tags": ["rose"]}', ("a photo of a rose.",)),
        ('{"tags": ["tabby, cat", "x"]}', ("a photo of a tabby cat.",)),
        ('{"task": "classification", "class_name": "wine+glass"}', ("a photo of a wine glass.",)),
        ('[{"captions": ["first"]}, {"captions": ["second"]}]', ("first",)),
        ('["a", "b"]', ("a",)),
        ('"a story about captions"', ("a story about captions",)),
        ("not JSON, {but} close", ("not JSON, {but} close",)),
        ("1984", ("1984",)),
        ("true", ("true",)),
        ("null", ("null",)),
        ("-1.5e3", ("-1.5e3",)),
        ("1" * 5000, ("1" * 5000,)),
        ("[" * 100_000, ("[" * 100_000,)),
        ("[" * 900 + '"a"' + "]" * 900, ("a",)),
        ("[unused0] rides", ("person rides",)),
        ('{"captions": ["[unused0] and [unused0]"]}', ("person and person",)),
        ("", ("",)),
        (' {"captions": ["a"]} ', ("a",)),
    ],
)
def test_a_value_means_these_captions(value, expected):
    assert captions(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "[]",
        "{}",
        '{"captions": []}',
        '{"captions": [1]}',
        '{"caption": null}',
        '{"tags": []}',
        "[[]]",
        '{"a": 1}',
    ],
)
def test_a_value_without_a_caption_is_a_bad_row(value):
    with pytest.raises(BadRow):
        captions(value)


SCALARS = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from(["captions", "caption", "tags", "class_name", "text", "task", "other"])


@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    )
)
def test_any_json_is_captions_or_a_bad_row(value):
    try:
        found = captions(json.dumps(value))
    except BadRow:
        return
    assert found and all(isinstance(sentence, str) for sentence in found)


def write(folder, lines, index=None, name="text_00"):
    path = folder / f"{name}.tsv"
    path.write_bytes(b"".join(lines))
    if index is not None:
        path.with_suffix(".lineidx").write_text(index)
    return path


LINES = [b"k0\tzero\n", b"k1\ta longer one\n", b"k2\ttwo\n"]
STARTS = [0, 8, 24]


def texts(path):
    return [row.texts[0] for row in open_rows([path], "text", input_format="tsv")]


@pytest.mark.parametrize("index", [None, "0\n8\n24\n", "0\n8\n24"])
@pytest.mark.parametrize("last", [b"k2\ttwo\n", b"k2\ttwo"])
def test_offsets_come_from_the_index_or_from_the_lines(tmp_path, index, last):
    path = write(tmp_path, [*LINES[:2], last], index)
    assert read_offsets(path).tolist() == [*STARTS, path.stat().st_size]
    assert texts(path) == ["zero", "a longer one", "two"]


@pytest.mark.parametrize(
    ("index", "row"),
    [
        ("8\n24\n", "row 0"),  # does not begin at 0
        ("0\n24\n8\n", "row 1"),  # not ascending
        ("0\n8\n8\n24\n", "row 1"),  # a row of no bytes
        ("0\n8\n24\n999\n", "row 3"),  # past the end
        ("0\n8\n24\n32\n", "row 3"),  # one row too many, at the very end
        ("0\n-8\n24\n", "row 0"),
        ("", "empty"),
        ("0\neight\n24\n", "decimal byte offset"),
        ("0\n8.5\n", "decimal byte offset"),
        ("0\n99999999999999999999999\n", "decimal byte offset"),
        ("\x89PNG\xff", "decimal byte offset"),
    ],
)
def test_an_index_that_cannot_fit_is_refused_on_opening(tmp_path, index, row):
    path = write(tmp_path, LINES)
    path.with_suffix(".lineidx").write_bytes(index.encode("latin-1"))
    with pytest.raises(DataError, match=f"text_00.lineidx.*{row}.*(remove|anew)"):
        open_rows([path], "text")


@pytest.mark.parametrize(
    ("index", "row"),
    [
        ("0\n8\n", 1),
        ("0\n24\n", 0),
        ("0\n7\n24\n", 0),
        ("0\n10\n24\n", 0),
        ("0\n8\n25\n", 1),
        ("0\n8\n23\n", 1),
    ],
    ids=["last-missing", "middle-missing", "one-early", "two-late", "last-late", "last-early"],
)
def test_an_index_of_another_file_is_found_at_the_row_and_shifts_nothing(tmp_path, index, row):
    rows = open_rows([write(tmp_path, LINES, index)], "text")
    for good in range(row):
        assert rows[good].key == f"k{good}"
    with pytest.raises(DataError, match=f"row {row}: .*not one line.*remove the index"):
        rows[row]


def test_a_carriage_return_inside_a_caption_changes_nothing(tmp_path):
    lines = [b"k0\ta\rb\n", b"k1\tc\x0bd\x0ce\n", "k2\tf\u2028g\u0085h\n".encode(), b"k3\tlast\n"]
    for index in (None, "".join(f"{sum(map(len, lines[:i]))}\n" for i in range(4))):
        path = write(tmp_path, lines, index)
        rows = open_rows([path], "text", input_format="tsv")
        assert [row.key for row in rows] == ["k0", "k1", "k2", "k3"]
        assert rows[0].texts == ("a\rb",) and rows[3].texts == ("last",)


def test_only_the_rows_of_the_linelist_count_and_keys_agree_with_rows(tmp_path):
    path = write(tmp_path, LINES, "0\n8\n24\n")
    path.with_suffix(".linelist").write_text("0\n2\n")
    rows = open_rows([path], "text")
    assert rows.shards[0].keys() == ["k0", "k2"] == [row.key for row in rows]
    assert [row.texts for row in rows] == [("zero",), ("two",)]


@pytest.mark.parametrize(
    "content", ["2\n0\n", "0\n0\n", "0\n3\n", "-1\n", "one\n", "99999999999999999999999"]
)
def test_a_linelist_that_does_not_fit_is_refused(tmp_path, content):
    path = write(tmp_path, LINES)
    path.with_suffix(".linelist").write_text(content)
    with pytest.raises(DataError, match="text_00.linelist.*correct the list"):
        open_rows([path], "text", input_format="tsv")


def test_an_empty_file_has_no_rows(tmp_path):
    assert len(open_rows([write(tmp_path, [])], "text", input_format="tsv")) == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"k0\n", "no second column"),
        (b"\n", "no second column"),
        (b"k0\t\xff\xfe\n", "not UTF-8"),
        (b"k0\t[]\n", "empty list"),
    ],
)
def test_a_bad_caption_row_says_why(tmp_path, line, reason):
    rows = open_rows([write(tmp_path, [line, b"k1\tfine\n"], f"0\n{len(line)}\n")], "text")
    with pytest.raises(BadRow, match=reason):
        rows[0]
    assert rows[1].texts == ("fine",)
    assert rows.shards[0].keys()[1] == "k1"


@pytest.mark.parametrize("value", [b"@@@@", b"abc", "é".encode(), b"QUJ D", b"QU\rJD"])
def test_an_image_that_is_not_base64_is_a_bad_row(tmp_path, value):
    rows = open_rows([write(tmp_path, [b"k0\t" + value + b"\n"], "0\n")], "image")
    with pytest.raises(BadRow, match="second column is not base64"):
        rows[0]


def test_image_rows_carry_bytes_and_an_optional_label(tmp_path, picture):
    value = base64.b64encode(picture(0))
    lines = [b"a\t" + value + b"\n", b"b\t" + value + b"\t7\n", b"c\t" + value + b"\tdog\n"]
    rows = open_rows([write(tmp_path, lines, name="image_00")], "image", input_format="tsv")
    assert [row.image for row in rows] == [picture(0)] * 3
    assert [row.label for row in rows] == [None, 7, "dog"]


def test_long_keys_are_read_whole(tmp_path):
    long = "k" * 700
    path = write(tmp_path, [f"{long}\ta\n".encode(), b"k1\tb\n"])
    assert open_rows([path], "text", input_format="tsv").shards[0].keys() == [long, "k1"]


def test_pairs_are_not_in_a_dime_fm_tsv(tmp_path):
    with pytest.raises(DataError, match="not pairs"):
        open_rows([write(tmp_path, LINES, "0\n8\n24\n")], "pair", input_format="tsv")


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")),
        min_size=1,
        max_size=20,
    )
)
def test_scanning_finds_every_line(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("tsv") / "x.tsv"
    path.write_bytes(
        b"".join(
            b"k\t" + json.dumps({"caption": s}, ensure_ascii=False).encode() + b"\n"
            for s in sentences
        )
    )
    offsets = read_offsets(path)
    assert len(offsets) == len(sentences) + 1 and (np.diff(offsets) > 0).all()
    assert texts(path) == [s.replace("[unused0]", "person") for s in sentences]


def test_lines_may_end_as_on_windows(tmp_path, picture):
    """A caption keeps what it holds; a carriage return is no part of an image."""
    image = base64.b64encode(picture(1))
    (tmp_path / "image.tsv").write_bytes(b"a\t" + image + b"\r\nb\t" + image + b"\t7\r\n")
    rows = open_rows([tmp_path / "image.tsv"], "image")
    assert [(row.key, row.image, row.label) for row in rows] == [
        ("a", picture(1), None),
        ("b", picture(1), 7),
    ]
    (tmp_path / "table.tsv").write_bytes(b"id\tcaption\r\n1\ta cat\r\n2\ta dog\r\n")
    assert [row.texts for row in open_rows([tmp_path / "table.tsv"], "text")] == [
        ("a cat",),
        ("a dog",),
    ]


@pytest.mark.parametrize("has_mark", [True, False])
@pytest.mark.parametrize("order", ["{key}\t{text}", "{text} of words\thttp://a.example/{key}"])
def test_keys_are_the_same_when_many_lines_are_read_at_a_time(
    tmp_path, monkeypatch, has_mark, order
):
    lines = [order.format(key=f"k{n}", text="x" * (n % 50)) for n in range(400)]
    lines[200] = "no second column"
    text = "".join(f"{line}\n" for line in lines)
    (tmp_path / "x.tsv").write_bytes(text.encode("utf-8-sig" if has_mark else "utf-8"))
    one_by_one = open_rows([tmp_path / "x.tsv"], "text").shards[0].keys()
    monkeypatch.setattr("dimefm.data.formats.tsv.BLOCK", 1000)
    monkeypatch.setattr("dimefm.data.formats.tsv.SHORT_LINE", 200)
    (shard,) = open_rows([tmp_path / "x.tsv"], "text").shards
    assert shard.keys() == one_by_one
    assert shard.keys()[:1] == [shard[0].key]
