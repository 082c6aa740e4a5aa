"""What a person counts in a source is a row, is quarantined, or is named as left out."""

import json
import os
import socket

import pytest

from dimefm.cache.importing.vectors import read_keys
from dimefm.data import Columns, open_rows
from dimefm.data.resolver import _listing
from dimefm.data.views.synonyms import Synonyms
from dimefm.errors import CacheError, DataError
from tests.data.boxes import put, read, write_tar

LITTER = [
    "cat/.ipynb_checkpoints/1-checkpoint.jpg",
    "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "dog/.thumbnails/2.jpg",
    "dog/._2.jpg",
    "dog/Thumbs.db",
    "__MACOSX/cat/._1.jpg",
    ".git/objects/1.jpg",
    ".DS_Store",
    "$RECYCLE.BIN/3.jpg",
    "desktop.ini",
]


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_no_photo_and_is_counted(tmp_path, picture, name):
    put(tmp_path / "cat/1.jpg", picture(1))
    put(tmp_path / "dog/2.jpg", picture(2))
    put(tmp_path / name, picture(3))
    rows = open_rows([tmp_path], "image")
    assert rows.shards[0].keys() == ["cat/1.jpg", "dog/2.jpg"]
    assert len(rows.skipped) == 1
    assert name.split("/")[0] in rows.skipped.describe() or name in rows.skipped.describe()


@pytest.mark.parametrize("name", ["._0.tar", ".0.tar", "Thumbs.db", "__MACOSX/._0.tar"])
def test_litter_is_no_shard(tmp_path, picture, name):
    write_tar(tmp_path / "0.tar", [("a.png", picture(1))])
    put(tmp_path / name, b"\0\5\x16\7" + bytes(80))
    for source in (tmp_path, tmp_path / "*"):
        rows = open_rows([source], "image")
        assert rows.shards[0].keys() == ["a"]


def test_litter_in_a_tar_is_no_row(tmp_path, picture):
    members = [("./a.png", picture(1)), ("./._a.png", b"\0\5"), ("__MACOSX/._b.png", b"\0\5")]
    rows = open_rows([write_tar(tmp_path / "0.tar", members)], "image")
    assert len(rows) == 1
    assert len(rows.skipped) == 2


NAMES_OF_IMAGES = {
    "a.jfif": "JPEG",
    "b.jpe": "JPEG",
    "c.JPG": "JPEG",
    "d.jpg_large": "JPEG",
    "e": "PNG",
    "f.jpg?width=600": "JPEG",
    "g.jp2": "JPEG2000",
    "h.tif": "TIFF",
    "i.orig": "WEBP",
    "j.0": "BMP",
    "k.img": "GIF",
    "l.pnm": "PPM",
}


@pytest.mark.parametrize(("name", "format"), NAMES_OF_IMAGES.items())
def test_an_image_is_told_by_what_it_holds(tmp_path, picture, name, format):
    put(tmp_path / "photos" / name, picture(1, format=format))
    rows = open_rows([tmp_path / "photos"], "image")
    assert rows.shards[0].keys() == [name]
    assert rows[0].image == picture(1, format=format)
    member = name if "." in name else f"set/{name}"
    rows = open_rows([write_tar(tmp_path / "x.tar", [(member, picture(1, format=format))])])
    assert rows[0].image == picture(1, format=format)


def test_what_is_no_image_is_named_with_its_ending(tmp_path, picture):
    put(tmp_path / "a.jpg", picture(1))
    for name in ("notes.md", "film.mp4", "b.cr2", "README", "x\ny\x1b[31m.doc"):
        put(tmp_path / name, b"no image")
    rows = open_rows([tmp_path], "image")
    assert len(rows) == 1
    assert len(rows.skipped) == 5
    text = rows.skipped.describe()
    for expected in (".md (notes.md)", ".mp4", ".cr2", "without an ending (README)"):
        assert expected in text
    assert text.isprintable()
    assert json.loads(json.dumps(rows.skipped.fields()))[0]["count"] == 1


def test_nodes_that_are_no_files_do_not_hang(tmp_path, picture):
    put(tmp_path / "a.jpg", picture(1))
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(os.path.relpath(tmp_path / "socket.png"))
        good, bad = read(open_rows([tmp_path], "image"))
    assert list(good) == ["a.jpg"]
    assert list(bad) == ["pipe.jpg", "socket.png", "zero.png"]
    assert len(open_rows([tmp_path], "image").skipped) == 1
    for node in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match="is a pipe, a socket or a device"):
            open_rows([node], "text")
    os.mkfifo(tmp_path / "0.tar")
    (tmp_path / "x.list").write_text("0.tar\n")
    with pytest.raises(DataError, match="is a pipe, a socket or a device"):
        open_rows([tmp_path / "x.list"], "image")


# --- folders of images and texts, and of shards


def test_a_caption_ends_where_its_line_ends(tmp_path, picture):
    put(tmp_path / "a.jpg", picture(1))
    put(tmp_path / "a.txt", "a cat\x85 and\u2028its tail\r\nanother\rand more\n".encode())
    (row,) = open_rows([tmp_path], "text")
    assert row.texts == ("a cat\x85 and\u2028its tail", "another", "and more")


def test_a_folder_of_shards_is_listed_without_a_look_at_each_file(tmp_path, monkeypatch):
    for number in range(3):
        put(tmp_path / f"{number}.txt", b"a caption\n")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "inner").mkdir()
    with monkeypatch.context() as patch:
        patch.delattr(os, "stat")
        files, folders, others = _listing(tmp_path)
    assert (sorted(files), folders, others) == (
        ["0.txt", "1.txt", "2.txt"],
        ["inner"],
        ["loop.txt"],
    )


@pytest.mark.parametrize("inner", ["", "00000/", "a/b/"])
def test_texts_beside_images_are_paired_by_name(tmp_path, picture, inner):
    for number in range(3):
        put(tmp_path / f"{inner}{number}.jpg", picture(number))
    for number in (0, 2, 7):
        put(tmp_path / f"{inner}{number}.txt", f"caption {number}\n\nanother\n".encode())
    images, texts, pairs = (open_rows([tmp_path], kind) for kind in ("image", "text", "pair"))
    assert len(images) == len(texts) == len(pairs) == 3
    good, bad = read(texts)
    assert {key: row.texts[0] for key, row in good.items()} == {
        f"{inner}0.jpg": "caption 0",
        f"{inner}2.jpg": "caption 2",
    }
    assert good[f"{inner}0.jpg"].texts == ("caption 0", "another")
    assert list(bad) == [f"{inner}1.jpg"]
    assert "7.txt" in texts.skipped.describe()
    assert texts.shards[0].keys() == images.shards[0].keys() == pairs.shards[0].keys()
    assert [row.image for row in pairs] == [picture(number) for number in range(3)]
    before = texts.shards[0].digest()
    put(tmp_path / f"{inner}1.txt", b"a new caption")
    assert open_rows([tmp_path], "text").shards[0].digest() != before


def test_texts_that_are_not_named_like_images_stay_shards(tmp_path, picture):
    put(tmp_path / "0.jpg", picture(0))
    put(tmp_path / "sentences.txt", b"one\ntwo\n")
    assert [row.texts for row in open_rows([tmp_path], "text")] == [("one",), ("two",)]


def img2dataset(root, picture, form):
    """Write what img2dataset writes in a form of its output."""
    for shard in range(2):
        name = f"{shard:05d}"
        put(root / f"{name}.parquet", b"PAR1 of URLs")
        put(root / f"{name}_stats.json", b'{"count": 2}')
        members = []
        for number in range(2):
            key = f"{name}{number:04d}"
            members.append((f"{key}.png", picture(number)))
            members.append((f"{key}.txt", f"caption {key}".encode()))
            members.append((f"{key}.json", b"{}"))
        if form == "tars":
            write_tar(root / f"{name}.tar", members)
            continue
        for file, data in members:
            put(root / name / file, data)


@pytest.mark.parametrize("form", ["tars", "files"])
def test_a_folder_of_img2dataset_is_read_once(tmp_path, picture, form):
    img2dataset(tmp_path, picture, form)
    images = open_rows([tmp_path], "image")
    texts = open_rows([tmp_path], "text")
    keys = [key for shard in images.shards for key in shard.keys()]
    assert len(keys) == 4
    assert [row.key for row in texts] == keys
    assert texts[3].texts == ("caption 000010001",)
    if form == "tars":
        assert "2 tables of what the shards hold (00000.parquet" in images.skipped.describe()


def test_tars_beside_other_tables_ask_for_a_pattern(tmp_path, picture):
    write_tar(tmp_path / "0.tar", [("a.png", picture(1))])
    put(tmp_path / "metadata.parquet", b"PAR1")
    for kind in ("image", "text"):
        with pytest.raises(DataError, match=r"metadata\.parquet.*Fix: .*/\*\.tar'"):
            open_rows([tmp_path], kind)


def test_what_stands_beside_shards_is_counted(tmp_path, picture):
    write_tar(tmp_path / "0.tar", [("a.png", picture(1))])
    write_tar(tmp_path / "1.tar", [("b.png", picture(1))])
    put(tmp_path / "inner/2.tar", b"")
    put(tmp_path / "notes.md", b"")
    text = open_rows([tmp_path], "image").skipped.describe()
    assert "1 folders next to shards (inner/)" in text
    assert ".md (notes.md)" in text


# --- links


@pytest.fixture
def farm(tmp_path, picture):
    """Return a folder like a snapshot of the Hugging Face hub: links to files elsewhere."""
    for number in range(3):
        put(tmp_path / f"hub/blobs/{number:064x}", picture(number))
        link = tmp_path / f"hub/snapshots/abc/train/{number}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../blobs/{number:064x}")
    return tmp_path / "hub"


def test_a_farm_of_links_is_read_below_its_dataroot(farm, picture):
    folder = farm / "snapshots/abc/train"
    rows = open_rows([folder], "image", dataroot=farm, columns=Columns(root=farm))
    assert [row.image for row in rows] == [picture(number) for number in range(3)]
    good, bad = read(open_rows([folder], "image"))
    assert not good
    assert all("link that leads outside" in reason for reason in bad.values())
    assert all("--dataroot" in reason for reason in bad.values())
    blobs = open_rows([farm / "blobs"], "image")
    assert [row.image for row in blobs] == [picture(number) for number in range(3)]


def test_no_dataroot_lets_a_link_lead_out_of_it(farm, picture, tmp_path):
    put(tmp_path / "secret.png", picture(9))
    (farm / "snapshots/abc/train/0.png").unlink()
    (farm / "snapshots/abc/train/0.png").symlink_to(tmp_path / "secret.png")
    rows = open_rows(
        [farm / "snapshots/abc/train"], "image", dataroot=farm, columns=Columns(root=farm)
    )
    good, bad = read(rows)
    assert list(bad) == ["0.png"]
    assert len(good) == 2


# --- braces and lists


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("{00000..00002}.tar", [0, 1, 2]),
        ("{00002..00000}.tar", [2, 1, 0]),
        ("{00001,00000}.tar", [1, 0]),
        ("0000{0..1}.tar", [0, 1]),
        ("{000,001}0{0..0}.tar", None),
        ("00000.tar", [0]),
    ],
)
def test_braces_stand_for_names(tmp_path, picture, pattern, numbers):
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", [(f"{number}.png", picture(number))])
    (tmp_path / "x.list").write_text(f"{pattern}\n")
    for source in (tmp_path / pattern, tmp_path / "x.list"):
        if numbers is None:
            with pytest.raises(DataError, match=r"00100\.tar: no such file"):
                open_rows([source], "image")
            continue
        assert [row.key for row in open_rows([source], "image")] == [str(n) for n in numbers]


def test_a_name_with_braces_is_itself(tmp_path):
    put(tmp_path / "{a,b}.txt", b"braces\n")
    put(tmp_path / "{x}.txt", b"one\n")
    assert open_rows([tmp_path / "{a,b}.txt"], "text")[0].texts == ("braces",)
    assert open_rows([tmp_path / "{x}.txt"], "text")[0].texts == ("one",)


@pytest.mark.parametrize("text", ["{0..999999999999}.tar", "{0..999999}{0..9}.tar"])
def test_endless_braces_are_refused(tmp_path, text):
    with pytest.raises(DataError, match="more than 1,000,000 names"):
        open_rows([tmp_path / text], "image")


@pytest.mark.parametrize("entry", ["*", "./*", "../lists/*", "x.li*", "[x]*"])
def test_a_list_that_matches_itself_ends(tmp_path, entry):
    put(tmp_path / "lists/a.txt", b"one\n")
    (tmp_path / "lists/x.list").write_text(f"{entry}\n")
    if "x" in entry:
        with pytest.raises(DataError, match="names nothing but itself"):
            open_rows([tmp_path / "lists/x.list"], "text")
        return
    rows = open_rows([tmp_path / "lists/x.list"], "text")
    assert [row.texts for row in rows] == [("one",)]


def test_lists_that_match_one_another_are_refused(tmp_path):
    for name in ("x.list", "y.list"):
        (tmp_path / name).write_text("*\n")
    with pytest.raises(DataError, match="names another list"):
        open_rows([tmp_path / "x.list"], "text")
    with pytest.raises(DataError, match="names another list"):
        open_rows([tmp_path / "*.list"], "text")


def _pipe_or_device(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["a.lineidx", "a.linelist"])
def test_a_side_file_that_is_no_file_is_refused(tmp_path, kind, name):
    put(tmp_path / "a.tsv", b"a\tcat\nb\tdog\n")
    _pipe_or_device(tmp_path / name, kind)
    with pytest.raises(DataError, match=r"it is no regular file\)\. Fix:"):
        open_rows([tmp_path / "a.tsv"], "text")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_table_of_synonyms_or_keys_that_is_no_file_is_refused(tmp_path, kind):
    _pipe_or_device(tmp_path / "words", kind)
    with pytest.raises(DataError, match="it is no regular file"):
        Synonyms.read(tmp_path / "words")
    with pytest.raises(CacheError, match="it is no regular file"):
        read_keys(tmp_path / "words")
