"""Tars as people have them: joined, unsorted, with names that stand twice; and hostile ones."""

import json
import sys
import tarfile

import pytest

from dimefm.data import Columns, open_rows
from dimefm.data.formats import tar as tars
from dimefm.errors import DataError
from tests.data.boxes import put, read, write_tar


@pytest.mark.parametrize("padding", [0, 512, 10_240, 3 << 20])
def test_a_tar_joined_of_several_is_read_to_its_end(tmp_path, picture, padding):
    joined = b""
    for number in range(3):
        part = write_tar(tmp_path / "part.tar", [(f"{number}.png", picture(number))])
        joined += part.read_bytes() + bytes(padding)
    (tmp_path / "part.tar").unlink()
    (tmp_path / "x.tar").write_bytes(joined)
    rows = open_rows([tmp_path / "x.tar"], "image")
    assert [row.key for row in rows] == ["0", "1", "2"]
    assert [row.image for row in rows] == [picture(number) for number in range(3)]


@pytest.mark.parametrize("rest", [b"x", b"no tar" * 1000, bytes(600) + b"\1"])
def test_bytes_behind_the_end_mark_that_are_no_tar_are_refused(tmp_path, picture, rest):
    path = write_tar(tmp_path / "x.tar", [("a.png", picture(1))])
    path.write_bytes(path.read_bytes() + rest)
    with pytest.raises(DataError, match=r"x\.tar: not a whole"):
        open_rows([path], "image")


@pytest.mark.parametrize(
    "order",
    [
        ["0.png", "1.png", "0.txt", "1.txt"],
        ["0.txt", "1.txt", "1.png", "0.png"],
        ["0.png", "1.txt", "1.png", "0.txt"],
    ],
)
def test_members_of_one_key_may_stand_apart(tmp_path, picture, order):
    members = []
    for name in order:
        number = int(name[0])
        data = picture(number) if name.endswith("png") else f"caption {number}".encode()
        members.append((name, data))
    path = write_tar(tmp_path / "x.tar", members)
    images, texts, pairs = (open_rows([path], kind) for kind in ("image", "text", "pair"))
    assert len(images) == len(texts) == len(pairs) == 2
    for row in pairs:
        assert row.image == picture(int(row.key))
        assert row.texts == (f"caption {row.key}",)
    assert [row.key for row in images] == [row.key for row in texts]


def test_of_a_name_that_stands_twice_both_are_rows(tmp_path, picture):
    members = [
        ("a.png", picture(1)),
        ("a.txt", b"first"),
        ("a.png", picture(2)),
        ("a.txt", b"second"),
        ("b.png", picture(3)),
        ("b.txt", b"third"),
    ]
    rows = open_rows([write_tar(tmp_path / "x.tar", members)], "pair")
    assert [(row.key, row.image, row.texts) for row in rows] == [
        ("a", picture(1), ("first",)),
        ("a~2", picture(2), ("second",)),
        ("b", picture(3), ("third",)),
    ]
    assert "names that stand twice" in rows.skipped.describe()


def test_links_in_a_tar_lead_to_its_members(tmp_path, picture):
    links = [
        ("set/b.png", "set/a.png", tarfile.LNKTYPE),
        ("set/c.png", "a.png", tarfile.SYMTYPE),
        ("set/d.png", "c.png", tarfile.SYMTYPE),
        ("set/e.png", "../../etc/passwd", tarfile.SYMTYPE),
        ("set/f.png", "f.png", tarfile.SYMTYPE),
        ("set/pipe.png", "", tarfile.FIFOTYPE),
    ]
    path = write_tar(tmp_path / "x.tar", [("set/a.png", picture(1))], links)
    rows = open_rows([path], "image")
    good, bad = read(rows)
    assert {row.image for row in good.values()} == {picture(1)}
    assert list(good) == ["set/a", "set/b", "set/c", "set/d"]
    assert list(bad) == ["set/e", "set/f"]
    assert len(rows.skipped) == 1


def test_endings_of_two_parts_are_read(tmp_path, picture):
    members = []
    for number in range(2):
        members.append((f"s{number}.input.png", picture(number)))
        members.append((f"s{number}.outputs.txt", f"caption {number}".encode()))
    rows = open_rows([write_tar(tmp_path / "x.tar", members)], "pair")
    assert [(row.key, row.texts) for row in rows] == [
        ("s0", ("caption 0",)),
        ("s1", ("caption 1",)),
    ]


def test_several_images_of_a_row_ask_for_a_column(tmp_path, picture):
    members = []
    for number in range(3):
        members.append((f"s{number}.input.png", picture(number)))
        members.append((f"s{number}.target.png", picture(9)))
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"input\.png, target\.png.*--image-column input\.png"):
        open_rows([path], "image")
    rows = open_rows([path], "image", columns=Columns(image="input.png"))
    assert [row.image for row in rows] == [picture(number) for number in range(3)]


def test_keys_may_have_dots(tmp_path, picture):
    members = []
    for number in range(4):
        members.append((f"2017.{number}.png", picture(number)))
        members.append((f"2017.{number}.txt", b"a caption"))
    path = write_tar(tmp_path / "x.tar", members)
    for kind in ("image", "text"):
        assert [row.key for row in open_rows([path], kind)] == [f"2017.{n}" for n in range(4)]


def test_a_second_image_of_a_row_is_counted(tmp_path, picture):
    members = [("a.png", picture(1)), ("a.seg.png", picture(2)), ("a.jpg", picture(3))]
    rows = open_rows([write_tar(tmp_path / "x.tar", members)], "image")
    assert [row.image for row in rows] == [picture(3)]
    assert len(rows.skipped) == 2


@pytest.mark.parametrize("empty", [b"", bytes(1024), bytes(10_240)])
def test_an_empty_shard_among_others_stops_nothing_and_is_named(tmp_path, picture, empty):
    write_tar(tmp_path / "0.tar", [("a.png", picture(1))])
    (tmp_path / "1.tar").write_bytes(empty)
    write_tar(tmp_path / "2.tar", [("b.png", picture(2))])
    (tmp_path / "x.list").write_text("0.tar\n1.tar\n2.tar\n")
    rows = open_rows([tmp_path / "x.list"], "image")
    assert [row.key for row in rows] == ["a", "b"]
    assert [len(shard) for shard in rows.shards] == [1, 0, 1]
    assert "1.tar" in rows.skipped.describe()


HOSTILE_MEMBERS = {
    "json": [
        b"[" * 100_000,
        b'{"caption": ' + b"1" * 10_000 + b"}",
        b'{"caption": "\xff"}',
        b"null",
    ],
    "txt": [b"\xff\xfe", b""],
}


@pytest.mark.parametrize(
    ("ending", "content"),
    [(ending, content) for ending, all_of in HOSTILE_MEMBERS.items() for content in all_of],
    ids=lambda value: repr(value)[:20],
)
def test_a_hostile_member_is_one_bad_row(tmp_path, ending, content):
    members = [("a.txt", b"good"), (f"b.{ending}", content), ("c.txt", b"good")]
    rows = open_rows([write_tar(tmp_path / "x.tar", members)], "text")
    good, bad = read(rows)
    texts = [row.texts for row in good.values() if row.texts != ("",)]
    assert texts == [("good",), ("good",)]
    assert all(len(reason) < 300 and "\n" not in reason for reason in bad.values())


def test_a_label_of_5000_digits_is_one_bad_row(tmp_path, picture):
    members = [
        ("a.png", picture(1)),
        ("a.cls", b"1" * 5_000),
        ("b.png", picture(2)),
        ("b.cls", b"7"),
    ]
    rows = open_rows([write_tar(tmp_path / "x.tar", members)], "image")
    good, bad = read(rows)
    assert list(good) == ["b"]
    assert "5,000 digits" in bad["a"]
    assert rows.shards[0].labels() == [None, 7]


def header(**fields):
    entry = tarfile.TarInfo("a.png")
    for name, value in fields.items():
        setattr(entry, name, value)
    return entry


def test_a_long_header_is_refused_before_it_is_parsed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(header(pax_headers={"comment": "1 " * 100_000}))
    with pytest.raises(DataError, match="bytes of attributes, the limit is 65,536"):
        open_rows([tmp_path / "x.tar"], "image")


@pytest.mark.parametrize("pax", [{"size": "-512"}, {"size": "9" * 18}, {"GNU.sparse.map": "x"}])
def test_a_header_that_lies_is_refused(tmp_path, pax):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(header(pax_headers=pax))
        file.addfile(header(name="b.png"))
    with pytest.raises(DataError, match=r"x\.tar: not a whole"):
        open_rows([tmp_path / "x.tar"], "image")


@pytest.mark.parametrize("names", [["a.txt"], ["a.txt", "a.json"], ["a.txt", "b.txt"]])
def test_names_that_stand_many_times_take_time_in_proportion(tmp_path, names):
    calls = []
    for count in (100, 400):
        members = [(name, b'{"caption": "x"}') for _ in range(count) for name in names]
        path = write_tar(tmp_path / f"{count}.tar", members)
        tars.TarShard(path, "warm", "text", Columns())
        calls.append(_calls(lambda path=path: tars.TarShard(path, "x", "text", Columns())))
    assert calls[1] < 5.5 * calls[0]


def _calls(action):
    """Return how many lines of dimefm's tar modules an action runs."""
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        if "tar" not in frame.f_code.co_filename.rpartition("/")[2]:
            return None
        lines += event == "line"
        return count

    sys.settrace(count)
    try:
        action()
    finally:
        sys.settrace(None)
    return lines


@pytest.mark.parametrize("order", [["txt", "json"], ["json", "txt"]])
def test_members_of_a_name_that_stands_twice_stay_together(tmp_path, order):
    members = []
    for number in range(3):
        for ending in order:
            text = f"caption {number}"
            members.append((f"a.{ending}", text if ending == "txt" else json.dumps({"n": number})))
    path = write_tar(tmp_path / "x.tar", [(name, text.encode()) for name, text in members])
    shard = open_rows([path], "text").shards[0]
    assert shard.keys() == ["a", "a~2", "a~3"]
    assert [row.texts for row in shard] == [(f"caption {number}",) for number in range(3)]
    assert all(set(row) == {"txt", "json"} for row in shard.members)


def test_a_large_member_is_a_bad_row(tmp_path, picture, monkeypatch):
    path = write_tar(tmp_path / "x.tar", [("a.png", bytes(5_000)), ("b.png", picture(1))])
    monkeypatch.setattr(tars, "LARGEST_FILE", 4_000)
    good, bad = read(open_rows([path], "image"))
    assert list(good) == ["b"]
    assert "limit" in bad["a"]


def test_a_label_that_is_a_link_out_of_its_tar_is_named(tmp_path, picture):
    from dimefm.evaluate.datasets.layouts import find

    members = [("0.png", picture(0)), ("0.cls", b"0"), ("1.png", picture(1))]
    links = [("1.cls", "/etc/passwd", tarfile.SYMTYPE)]
    put(tmp_path / "one/classnames.txt", b"cat\ndog\n")
    write_tar(tmp_path / "one/test.tar", members, links)
    with pytest.raises(DataError, match=r"test\.tar: 1\.cls: is a link to /etc/passwd"):
        find(tmp_path, ["one"])
