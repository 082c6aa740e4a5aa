"""Lines of text files: found in blocks, cut as bytes, in bounded memory."""

import gzip
import pickle
import random
import subprocess
import sys

import pytest

from dimefm.data import lines, open_rows, unpacking
from dimefm.data.lines import Lines
from dimefm.errors import BadRow, DataError


@pytest.fixture
def small_blocks(monkeypatch):
    """Let every file have many blocks."""
    monkeypatch.setattr(lines, "BLOCK", 512)
    monkeypatch.setattr(unpacking, "SPAN", 1000)
    monkeypatch.setattr(unpacking, "PACKED", 77)
    monkeypatch.setattr(unpacking, "KEPT", 3000)


def random_body(draw):
    count = draw.randrange(60)
    body = b"\n".join(
        bytes(draw.choice(b"abc \r") for _ in range(draw.randrange(300))) for _ in range(count)
    )
    return body + (b"\n" if count and draw.random() < 0.5 else b"")


def lines_of(body):
    expected = body.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    return [line.removesuffix(b"\r") for line in expected]


def packed(draw, body):
    """Return a gzip file of two members, perhaps with zeros between them and after them."""
    place = draw.randrange(len(body) + 1)
    zeros = [b"\0" * draw.choice([0, 5, 200]) for _ in range(2)]
    return gzip.compress(body[:place]) + zeros[0] + gzip.compress(body[place:]) + zeros[1]


@pytest.mark.parametrize("seed", range(20))
def test_lines_are_found_in_any_block_and_read_in_any_order(tmp_path, small_blocks, seed):
    draw = random.Random(seed)
    body = random_body(draw)
    expected = lines_of(body)
    (tmp_path / "x.txt").write_bytes(body)
    (tmp_path / "x.txt.gz").write_bytes(packed(draw, body))
    order = draw.sample(range(len(expected)), len(expected))
    for name in ("x.txt", "x.txt.gz"):
        found = Lines(tmp_path / name)
        assert len(found) == len(expected)
        assert [found[number] for number in order] == [expected[number] for number in order]
        again = pickle.loads(pickle.dumps(found))
        assert [again[number] for number in order] == [expected[number] for number in order]


def test_blocks_may_end_with_a_member_of_a_gzip_file(tmp_path, small_blocks):
    members = [gzip.compress(b"x" * 999 + b"\n") for _ in range(3)]
    (tmp_path / "x.txt.gz").write_bytes(b"".join(members))
    assert list(map(len, Lines(tmp_path / "x.txt.gz"))) == [999, 999, 999]


def test_a_gzip_file_is_unpacked_once_to_open_it(tmp_path, small_blocks, monkeypatch):
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"a line\n" * 9))
    sizes = []
    unpack = unpacking._Decoder.unpack

    def counted(decoder, size):
        block = unpack(decoder, size)
        sizes.append(len(block))
        return block

    monkeypatch.setattr(unpacking._Decoder, "unpack", counted)
    assert len(Lines(tmp_path / "x.txt.gz")) == 9
    assert sum(sizes) == 63


ENDINGS = ["txt", "txt.gz", "jsonl", "jsonl.gz", "tsv", "csv"]


def write(path, raw):
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def three_rows(ending):
    """Return a file of the captions "zero", "one" and "two", as text."""
    words = ["zero", "one", "two"]
    kind = ending.removesuffix(".gz")
    if kind == "jsonl":
        rows = [f'{{"caption": "{word}"}}' for word in words]
    elif kind == "tsv":
        rows = [f"k{number}\t{word}" for number, word in enumerate(words)]
    elif kind == "csv":
        rows = ["key,title", *(f"k{number},{word}" for number, word in enumerate(words))]
    else:
        rows = words
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("form", ["mark", "crlf", "mark and crlf", "no last newline"])
def test_other_spellings_of_utf8_are_the_same_rows(tmp_path, ending, form):
    text = three_rows(ending)
    if "crlf" in form:
        text = text.replace("\n", "\r\n")
    if form == "no last newline":
        text = text.rstrip("\n")
    raw = text.encode("utf-8-sig" if "mark" in form else "utf-8")
    rows = open_rows([write(tmp_path / f"x.{ending}", raw)], "text")
    assert [row.texts[0].rstrip("\r") for row in rows] == ["zero", "one", "two"]
    first_keys = ["k0", "k1", "k2"] if ending in ("tsv", "csv") else ["0", "1", "2"]
    assert rows.shards[0].keys() == first_keys == [row.key for row in rows]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_refused_in_one_line(tmp_path, ending, encoding):
    path = write(tmp_path / f"x.{ending}", three_rows(ending).encode(encoding))
    with pytest.raises(DataError, match=r"UTF-16.*Fix: save it as UTF-8|cannot tell its format"):
        open_rows([path], "text")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "gb18030"])
def test_narrow_encodings_are_refused_or_quarantined_but_never_read_as_others(
    tmp_path, ending, encoding
):
    word = "café" if encoding in ("latin-1", "cp1252") else "日本"
    raw = three_rows(ending).replace("one", word).encode(encoding)
    path = write(tmp_path / f"x.{ending}", raw)
    try:
        rows = open_rows([path], "text")
    except DataError as error:
        assert "not UTF-8" in str(error) and "Fix: save it as UTF-8" in str(error)
        return
    assert rows[0].texts == ("zero",) and rows[2].texts == ("two",)
    with pytest.raises(BadRow, match="UTF-8"):
        rows[1]


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != "csv"])
def test_nul_is_a_character_of_its_row(tmp_path, ending):
    path = write(tmp_path / f"x.{ending}", three_rows(ending).replace("one", "o\0e").encode())
    rows = open_rows([path], "text")
    assert rows[0].texts == ("zero",) and rows[2].texts == ("two",)
    if "jsonl" in ending:  # JSON has no control characters in strings
        with pytest.raises(BadRow, match="not JSON"):
            rows[1]
    else:
        assert rows[1].texts == ("o\0e",)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_line_without_end_is_one_bad_row(tmp_path, ending, monkeypatch):
    for module in ("lines", "formats.tsv", "formats.jsonl", "formats.table"):
        monkeypatch.setattr(f"dimefm.data.{module}.LONGEST_TEXT", 5000)
    monkeypatch.setattr(Lines.__init__, "__defaults__", (5000,))
    path = write(tmp_path / f"x.{ending}", three_rows(ending).replace("one", "o" * 6000).encode())
    rows = open_rows([path], "text")
    assert rows[0].texts == ("zero",) and rows[2].texts == ("two",)
    with pytest.raises(BadRow, match=r"has 6,\d\d\d bytes; at most 5,000"):
        rows[1]
    assert rows.shards[0].keys()[2] == rows[2].key


@pytest.mark.parametrize("ending", ["txt", "jsonl", "tsv", "csv"])
def test_a_file_that_is_cut_while_it_is_read_says_so(tmp_path, ending):
    path = write(tmp_path / f"x.{ending}", three_rows(ending).encode())
    rows = open_rows([path], "text")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2)
    assert rows[0].texts == ("zero",)
    with pytest.raises(DataError, match="was cut while in use. Fix: ") as caught:
        rows[2]
    assert not isinstance(caught.value, BadRow)


DAMAGES = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "flipped": lambda raw: raw[:50] + bytes([raw[50] ^ 0xFF]) + raw[51:],
    "wrong checksum": lambda raw: raw[:-8] + b"\0\0\0\0" + raw[-4:],
    "rest of another kind": lambda raw: raw + b"not gzip",
    "no gzip": lambda raw: b"plain text\n" * 9,
}


@pytest.mark.parametrize("ending", ["txt.gz", "jsonl.gz"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gzip_file_is_refused_in_one_line(tmp_path, ending, damage):
    draw = random.Random(0)
    text = "".join(f'{{"caption": "{draw.random()}"}}\n' for _ in range(200))
    (tmp_path / f"x.{ending}").write_bytes(DAMAGES[damage](gzip.compress(text.encode())))
    with pytest.raises(DataError, match=r"not a whole gzip file .*Fix: fetch or write it again"):
        open_rows([tmp_path / f"x.{ending}"], "text")


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_BYTES", 10 << 20)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"\0" * (50 << 20)))
    with pytest.raises(DataError, match="unpacks to more than .* Fix: unpack it with gunzip"):
        open_rows([tmp_path / "bomb.txt.gz"], "text")


MEASURE = """
import sys
from tests.memory import peak_kib
from dimefm.data import open_rows
open_rows([sys.argv[1]], "text")[0]  # what modules take
before = peak_kib()
rows = open_rows([sys.argv[2]], "text")
for number in (0, len(rows) // 2, len(rows) - 1):
    rows[number]
print(len(rows), peak_kib() - before)
"""


def growth(tmp_path, ending, megabytes):
    """Return the rows of a file of ``megabytes``, and the megabytes that its opening takes."""
    small = write(tmp_path / f"small.{ending}", three_rows(ending).encode())
    head, row, kept = "", f"{'many words ' * 90}\n", "k{}\t"
    if "csv" in ending:
        head, kept = "key,title\n", 'k{},"a, b" '
    elif "jsonl" in ending:
        row, kept = f'"{"many words " * 90}"\n', ""
    elif "txt" in ending:
        kept = ""
    text = head + "".join(kept.format(n) + row for n in range(1000))
    part = text.removeprefix(head).encode()
    large = tmp_path / f"large.{ending}"
    opened = gzip.open(large, "wb", 1) if ending.endswith(".gz") else large.open("wb")
    with opened as file:
        file.write(head.encode())
        for _ in range(megabytes):
            file.write(part)
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    rows, kilobytes = map(int, done.stdout.split())
    return rows, kilobytes / 1024


def test_memory_does_not_grow_with_a_table(tmp_path):
    rows, megabytes = growth(tmp_path, "csv", 64)
    assert rows == 64_000
    assert megabytes < 50  # a few blocks; the file has 64 MB


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_memory_does_not_grow_with_a_file(tmp_path, ending):
    rows, megabytes = growth(tmp_path, ending, 200)
    assert rows == 200_000
    limit = 350 if ending.endswith(".gz") else 80
    assert megabytes < limit


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.tsv"])
@pytest.mark.parametrize("end", [b"\r", b""])
def test_lines_that_end_with_a_carriage_return_alone_are_refused(tmp_path, name, end):
    rows = [b"a cat", b"a dog", b"a cow"]
    if name == "a.tsv":
        rows = [b"a\tcat", b"b\tdog", b"c\tcow"]
    if "jsonl" in name:
        rows = [b'{"text": "cat"}', b'{"text": "dog"}', b'{"text": "cow"}']
    body = b"\r".join(rows) + end
    (tmp_path / name).write_bytes(gzip.compress(body) if name.endswith("gz") else body)
    if name == "a.tsv":
        (tmp_path / "a.lineidx").write_text("0\n")
    with pytest.raises(DataError, match="carriage return alone.*Fix: convert it"):
        open_rows([tmp_path / name], "text")


@pytest.mark.parametrize("body", [b"a cat", b"a cat\r", b"a cat\r\n", b"a\rb\na dog\n"])
def test_other_carriage_returns_are_part_of_lines_or_their_ends(tmp_path, body):
    (tmp_path / "a.txt").write_bytes(body)
    assert len(open_rows([tmp_path / "a.txt"], "text")) == body.count(b"\n") or 1
