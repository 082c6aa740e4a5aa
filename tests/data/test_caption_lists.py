"""Names of images and numbers before sentences are keys; they never become words."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.data import open_rows
from dimefm.data.formats import captions
from dimefm.data.pairing import pair
from dimefm.errors import BadRow, DataError

SENTENCES = ["A child climbs .", "A dog , wet , runs .", 'A "good" girl', "3 cats", "the end 7"]
NAMES = ["1000_a.jpg", "1000_a.jpg", "12 b.JPEG", "sub/c.png", "d.webp"]
NUMBERS = [0, 1, 0, 0, 0]
KEYS = [f"{name}#{number}" for name, number in zip(NAMES, NUMBERS, strict=True)]


def quoted(text):
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"') else text


ROWS = list(zip(NAMES, NUMBERS, SENTENCES, strict=True))
NAMED = {
    "Flickr8k.token.txt": [f"{name}#{number}\t{text}" for name, number, text in ROWS],
    "results_20130124.token": [f"{name}#{number}\t{text}" for name, number, text in ROWS],
    "captions.txt": ["image,caption", *(f"{name},{quoted(text)}" for name, _, text in ROWS)],
    "no_header.txt": [f"{name},{quoted(text)}" for name, _, text in ROWS],
    "tabs.txt": [f"{name}\t{text}" for name, _, text in ROWS],
    "quotes.txt": [f'"{name}",{quoted(text)}' for name, _, text in ROWS],
    "flickr30k.txt": [
        "image_name| comment_number| comment",
        *(f"{name}| {number}| {text}" for name, number, text in ROWS),
    ],
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_names_before_sentences_are_their_keys(tmp_path, name, end):
    path = tmp_path / name
    path.write_bytes((end.join(NAMED[name]) + end).encode())
    rows = open_rows([path], "text")
    assert [row.texts for row in rows] == [(text,) for text in SENTENCES]
    assert [row.key for row in rows] == rows.shards[0].keys() == KEYS
    images, texts = pair(sorted(set(NAMES)), [row.key for row in rows])
    assert texts.tolist() == [sorted(set(NAMES)).index(name) for name in NAMES]
    as_it_stands = open_rows([path], "text", input_format="text")
    assert as_it_stands[0].texts == (NAMED[name][0],)


def test_a_blank_may_end_a_name_without_blanks(tmp_path):
    lines = [f"set/{number}.jpg {text}" for number, text in enumerate(SENTENCES)]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    rows = open_rows([tmp_path / "x.txt"], "text")
    assert [row.texts for row in rows] == [(text,) for text in SENTENCES]
    assert rows[4].key == "set/4.jpg#0"


@pytest.mark.parametrize(
    "lines",
    [
        [f"{number + 40}\t{text}" for number, text in enumerate(SENTENCES)],
        [f"{number + 40}. {text}" for number, text in enumerate(SENTENCES)],
        [f"{number + 40}) {text}" for number, text in enumerate(SENTENCES)],
        [f"  {number + 40} {text}" for number, text in enumerate(SENTENCES)],
        ["id,caption", *(f"{number + 40},{text}" for number, text in enumerate(SENTENCES))],
        ["id\tcaption", *(f"{number + 40}\t{text}" for number, text in enumerate(SENTENCES))],
    ],
)
def test_numbers_before_sentences_are_their_keys(tmp_path, lines):
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "x.txt").write_text("\n".join(lines))
    for name in ("x.txt", "x.txt.gz"):
        rows = open_rows([tmp_path / name], "text")
        assert [row.texts for row in rows] == [(text,) for text in SENTENCES]
        assert [row.key for row in rows] == [str(number + 40) for number in range(5)]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["a/1.jpg 0", "a/2.jpg 1", "b/1.jpg 11"], "names and numbers, no sentences"),
        (["1.jpg", "2.jpg", "3.jpg"], "names and numbers, no sentences"),
        (["1.jpg,0,1,1", "2.jpg,1,0,0"], "names and numbers, no sentences"),
        (["1\t7", "2\t9", "3\t1"], "names and numbers, no sentences"),
        (["Go.\tGeh.", "Come.\tKomm.", "Stop.\tHalt."], "2 columns with tabs"),
        (["x\t1\ta cat", "y\t2\ta dog", "z\t3\ta cow"], "3 columns with tabs"),
    ],
)
def test_lines_that_are_no_sentences_are_refused(tmp_path, lines, reason):
    (tmp_path / "x.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"x\.txt: .*{reason}.*--input-format text"):
        open_rows([tmp_path / "x.txt"], "text")
    assert len(open_rows([tmp_path / "x.txt"], "text", input_format="text")) == len(lines)


def test_a_number_of_a_caption_tells_a_name_without_ending(tmp_path):
    lines = [f"1000092795#{number}\t{text}" for number, text in enumerate(SENTENCES)]
    (tmp_path / "x.token").write_text("\n".join(lines))
    rows = open_rows([tmp_path / "x.token"], "text")
    assert [row.texts for row in rows] == [(text,) for text in SENTENCES]
    assert [row.key for row in rows] == [f"1000092795#{number}" for number in range(5)]


PLAIN = [
    ["1,000 people", "2,000 people", "5,000 people"],
    ["1.5 million", "2.5 million", "3 cats"],
    ["two cats", "3 dogs on a lawn", "4 cows"],
    ["1 cat", "1 dog", "5 birds"],
    ["2 cats"],
    ["the file a.jpg is old", "b.jpg is new"],
    ["a,b", "c,d", "e|f"],
    ["", "", "one"],
    [],
]


@pytest.mark.parametrize("lines", PLAIN)
def test_plain_sentences_stay_as_they_are(tmp_path, lines):
    (tmp_path / "x.txt").write_text("".join(f"{line}\n" for line in lines))
    rows = open_rows([tmp_path / "x.txt"], "text")
    assert [row.texts[0] for row in rows] == lines
    assert rows.shards[:1] == () or rows.shards[0].keys() == [str(n) for n in range(len(lines))]


def test_a_line_of_another_form_is_a_bad_row(tmp_path):
    lines = [f"{number}.jpg\ta cat {number}" for number in range(50)]
    lines[30] = "a cat without a name"
    lines[31] = ""
    (tmp_path / "x.txt").write_text("\n".join(lines))
    rows = open_rows([tmp_path / "x.txt"], "text")
    assert len(rows) == len(set(rows.shards[0].keys())) == 50
    with pytest.raises(BadRow, match="no name or number"):
        rows[30]
    assert rows[31].texts == ("",)
    assert rows[32].texts == ("a cat 32",)


def test_a_list_beside_its_images_is_read(tmp_path, picture):
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(picture(1))
    (tmp_path / "captions.txt").write_text(
        "image,caption\n1.jpg,a cat\n2.jpg,a dog\n1.jpg,the cat\n"
    )
    texts = open_rows([tmp_path], "text")
    assert [(row.key, row.texts[0]) for row in texts] == [
        ("1.jpg#0", "a cat"),
        ("2.jpg#0", "a dog"),
        ("1.jpg#1", "the cat"),
    ]
    assert open_rows([tmp_path], "image").shards[0].keys() == ["1.jpg", "2.jpg"]


WORDS = [
    "a",
    "3",
    "3.",
    "3)",
    "12\t",
    "x.jpg",
    "x.JPG,",
    "x.webp#0",
    "k#1\t",
    "\t",
    "\r",
    "\x0b",
    ".",
]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join), max_size=6))
def test_lines_that_look_plain_at_a_glance_are_no_captions(lines):
    """The quick look, which thousands of files go through, agrees with the patterns."""
    lines = "\n".join(lines).splitlines()
    if captions._are_plain(lines):
        assert captions._form_of([line for line in lines if line.strip()], Path("x.txt")) is None
