"""A damaged dataset fails by itself in one line; a damaged image is counted; others are scored."""

import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pytest

from dimefm.errors import BadRow, DataError
from dimefm.evaluate import zero_shot
from dimefm.evaluate.datasets import vision_datasets
from dimefm.evaluate.datasets.layouts import find
from dimefm.evaluate.guards import dataset_guard
from dimefm.models.loading import load_encoder
from tests.evaluate.datasets import image, parquet, tar, write

MODEL = "ResNet-mini-64/random:0"
DIGITS = "1" * 5_000
NESTED = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(MODEL, "cpu")


def whole(folder):
    """A dataset of two images that is as it should be."""
    for value, name in ((60, "cat"), (160, "dog")):
        write(folder / f"test/{name}/x.png", image(value))


def index(folder, content):
    """A dataset in the vision-datasets layout, with ``content`` as its index."""
    write(folder / "classnames.txt", "cat\ndog\n")
    write(folder / "test.txt", content)
    write(folder / "a.png", image(60))


def coco(folder, content):
    write(folder / "classnames.txt", "cat\ndog\n")
    write(folder / "test.json", content if isinstance(content, str) else json.dumps(content))
    write(folder / "a.png", image(60))


def coco_with(**changes):
    """Return a COCO index of one image with some of its parts replaced."""
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    return {**content, **changes}


def table(folder, labels, data=None):
    write(folder / "classnames.txt", "cat\ndog\n")
    if data is not None:
        write(folder / "test.parquet", data)
        return
    parquet(folder / "test.parquet", {"image": [image(60)], "label": labels})


def tars(folder, **members):
    write(folder / "classnames.txt", "cat\ndog\n")
    tar(folder / "test.tar", {name.replace("_", "."): data for name, data in members.items()})


def names(folder, data, file="classnames.txt"):
    whole(folder)
    write(folder / file, data)


def zipped(folder, data, lines="x.zip@a.png 0\n"):
    index(folder, lines)
    write(folder / "x.zip", data)


ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as _file:
    _file.writestr("a.png", image(60))


def moved(field, value):
    """Return a zip whose last record says something else of its directory."""
    data = bytearray(ZIP.getvalue())
    place = data.index(b"PK\5\6") + field
    data[place : place + 4] = struct.pack("<I", value)
    return bytes(data)


DAMAGE = {
    "index-not-utf8": lambda at: index(at, b"a.png 0\n\xff\xfe.png 1\n"),
    "index-with-nul": lambda at: index(at, b"a.png 0\na\0.png 1\n"),
    "index-with-endless-line": lambda at: index(at, "a.png 0\n" + "b" * 100_000 + ".png 1\n"),
    "index-label-of-5000-digits": lambda at: index(at, f"a.png 0\na.png {DIGITS}\n"),
    "index-label-beyond-64-bits": lambda at: index(at, f"a.png {2**70}\n"),
    "index-zip-with-an-endless-name": lambda at: index(at, "9" * 6_000 + ".zip@a.png 0\n"),
    "index-label-negative": lambda at: index(at, "a.png 0\na.png -1\n"),
    "index-names-not-utf8": lambda at: (
        index(at, "a.png 0\n"),
        write(at / "labels.txt", b"c\xffat\ndog\n"),
    ),
    "coco-nested": lambda at: coco(at, NESTED),
    "coco-number-of-5000-digits": lambda at: coco(at, f'{{"images": [{{"id": {DIGITS}}}]}}'),
    "coco-not-json": lambda at: coco(at, "<html>"),
    "coco-cut": lambda at: coco(at, json.dumps(coco_with())[:-40]),
    "coco-list": lambda at: coco(at, [1, 2]),
    "coco-images-a-number": lambda at: coco(at, coco_with(images=3)),
    "coco-images-of-text": lambda at: coco(at, coco_with(images=["a.png"])),
    "coco-id-a-list": lambda at: coco(at, coco_with(images=[{"id": [1], "file_name": "a.png"}])),
    "coco-same-id-twice": lambda at: coco(
        at, coco_with(images=[{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}])
    ),
    "coco-file-a-number": lambda at: coco(at, coco_with(images=[{"id": 1, "file_name": 7}])),
    "coco-file-with-nul": lambda at: coco(
        at, coco_with(images=[{"id": 1, "file_name": "a.png", "zip_file": "x\0.zip"}])
    ),
    "coco-unknown-image": lambda at: coco(
        at, coco_with(annotations=[{"image_id": 5, "category_id": 1}])
    ),
    "coco-unknown-category": lambda at: coco(
        at, coco_with(annotations=[{"image_id": 1, "category_id": 9}])
    ),
    "coco-name-a-number": lambda at: coco(
        at, coco_with(categories=[{"id": 1, "name": 5}, {"id": 2, "name": "dog"}])
    ),
    "coco-mixed-ids": lambda at: coco(
        at, coco_with(categories=[{"id": 1, "name": "cat"}, {"id": "b", "name": "dog"}])
    ),
    "zip-empty": lambda at: zipped(at, b""),
    "zip-of-html": lambda at: zipped(at, b"<html>" * 100),
    "zip-cut": lambda at: zipped(at, ZIP.getvalue()[:-30]),
    "zip-directory-damaged": lambda at: zipped(at, ZIP.getvalue().replace(b"PK\1\2", b"PK\1\3")),
    "zip-that-begins-before-its-start": lambda at: zipped(at, moved(16, 1 << 30)),
    "parquet-of-html": lambda at: table(at, None, b"<html>"),
    "parquet-empty": lambda at: table(at, None, b""),
    "parquet-label-beyond-64-bits": lambda at: table(at, pa.array([2**64 - 1], pa.uint64())),
    "parquet-label-list": lambda at: table(at, [[0]]),
    "parquet-label-date-out-of-range": lambda at: table(at, pa.array([2**62], pa.timestamp("us"))),
    "tar-of-html": lambda at: (
        write(at / "classnames.txt", "cat\ndog\n"),
        write(at / "test.tar", b"<html>" * 300),
    ),
    "tar-label-of-5000-digits": lambda at: tars(at, a_png=image(60), a_cls=DIGITS.encode()),
    "tar-label-not-utf8": lambda at: tars(at, a_png=image(60), a_cls=b"\xff\xfe\xfd"),
    "names-not-utf8": lambda at: names(at, b"c\xffat\ndog\n"),
    "names-with-nul": lambda at: names(at, b"cat\0\ndog\n"),
    "names-endless": lambda at: names(at, b"c" * 200_000 + b"\ndog\n"),
    "templates-not-utf8": lambda at: names(at, b"\xfe{}", "templates.txt"),
    "templates-without-place": lambda at: names(at, "\x1b[31m" * 500, "templates.txt"),
    "images-all-damaged": lambda at: write(at / "test/cat/x.png", b"no image"),
    "folder-empty": lambda at: at.mkdir(),
}


def test_each_damaged_dataset_fails_by_itself_and_the_others_are_scored(tmp_path, encoder):
    for name, make in DAMAGE.items():
        make(tmp_path / "sets" / name)
    whole(tmp_path / "sets/aaa-whole")
    whole(tmp_path / "sets/zzz-whole")
    asked = ["aaa-whole", *DAMAGE, "zzz-whole"]
    out = tmp_path / "scores"
    zero_shot.elevater(encoder, tmp_path / "sets", out, asked)
    scores = json.loads((out / "scores.json").read_text())
    assert [score["dataset"] for score in scores["scores"]] == ["aaa-whole", "zzz-whole"]
    reasons = {failure["dataset"]: failure["reason"] for failure in scores["failed"]}
    assert set(reasons) == set(DAMAGE)
    for name, reason in reasons.items():
        place = str(tmp_path / "sets" / name)
        assert place in reason or "none of the 1 rows" in reason, reason
        assert "\n" not in reason and len(reason) < 500 + len(place), reason


def test_a_line_of_python_is_no_array(tmp_path):
    """Headers of ``.npy`` labels that promise gigabytes, or nest, or hold objects."""
    file = io.BytesIO()
    np.save(file, np.zeros(20, np.int64))
    good = file.getvalue()
    header = good[:10]
    damaged = {
        "empty": b"",
        "cut": good[:-8],
        "no-header": header,
        "nested": header + b"(" * 116 + b"\n",
        "zip": ZIP.getvalue(),
    }
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    )
    damaged["bomb"] = huge.getvalue()
    for name, data in damaged.items():
        tar(tmp_path / name / "voc2007/test.tar", {"a.png": image(0), "a.npy": data})
        with pytest.raises(DataError, match=r"a\.npy: not a plain \.npy array"):
            find(tmp_path / name)


def member(method=zipfile.ZIP_DEFLATED, data=None):
    """Return (bytes of a zip file of one member, offset of the member's data)."""
    draw = np.random.default_rng(0)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.png", data or draw.integers(0, 9, 4_000, dtype=np.uint8).tobytes())
    return bytearray(file.getvalue()), 30 + len("a.png")


def flipped(method, places):
    data, start = member(method)
    for place in places:
        data[start + place] ^= 0x5A
    return bytes(data)


def patched(field, value):
    """Return a zip whose member says something else in its local header and in the directory."""
    data, _ = member()
    directory = data.index(b"PK\1\2")
    for start, shift in ((0, 0), (directory, 2)):
        offset = start + 4 + shift + field
        data[offset : offset + 2] = struct.pack("<H", value)
    return bytes(data)


def unpacks_to(size):
    """Return a zip that says that its member unpacks to so many zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(1 << 20)) + packer.flush()
    data, start = member(data=b"x")
    directory = data.index(b"PK\1\2")
    tail = data[directory:]
    head = bytearray(data[:start])
    head[18:26] = struct.pack("<II", len(packed), size)
    tail[20:28] = struct.pack("<II", len(packed), size)
    end = tail.index(b"PK\5\6")
    tail[end + 16 : end + 20] = struct.pack("<I", len(head) + len(packed))
    return bytes(head + packed + tail)


DAMAGED_MEMBERS = {
    "deflated": flipped(zipfile.ZIP_DEFLATED, range(2, 40)),
    "deflated-cut": flipped(zipfile.ZIP_DEFLATED, [0]),
    "lzma": flipped(zipfile.ZIP_LZMA, range(9, 40)),
    "lzma-properties": flipped(zipfile.ZIP_LZMA, range(0, 9)),
    "bzip2": flipped(zipfile.ZIP_BZIP2, range(4, 30)),
    "stored": flipped(zipfile.ZIP_STORED, [60]),
    "unknown-compression": patched(4, 97),
    "encrypted": patched(2, 1),
    "bomb": unpacks_to(1 << 30),
    "bomb-below-the-limit": unpacks_to(200 << 20),
}


@pytest.mark.parametrize("name", DAMAGED_MEMBERS)
def test_a_damaged_member_of_a_zip_is_a_bad_row(tmp_path, name):
    zipped(tmp_path / "set", DAMAGED_MEMBERS[name], "x.zip@a.png 0\na.png 1\n")
    rows, _, _ = find(tmp_path, ["set"])[0][0].rows()
    with pytest.raises(BadRow, match="cannot be read"):
        rows[0]
    assert rows[1].image


def test_paths_of_an_index_that_are_no_file_are_bad_rows(tmp_path):
    lines = [
        "9" * 6_000 + " 0",
        "folder 0",
        "pipe 0",
        "x" * 300 + " 0",
        "loop 0",
        "../outside.png 1",
        "a.png 1",
    ]
    index(tmp_path / "set", "\n".join(lines))
    (tmp_path / "set/folder").mkdir()
    os.mkfifo(tmp_path / "set/pipe")
    (tmp_path / "set/loop").symlink_to("loop")
    write(tmp_path / "outside.png", image(0))
    rows, _, _ = find(tmp_path, ["set"])[0][0].rows()
    for row in range(6):
        with pytest.raises(BadRow) as caught:
            rows[row]
        assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert rows[6].image


def test_a_failing_disk_is_no_damaged_member(tmp_path, monkeypatch):
    zipped(tmp_path / "set", ZIP.getvalue(), "x.zip@a.png 0\n")
    rows, _, _ = find(tmp_path, ["set"])[0][0].rows()

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("dimefm.storage.reading.PAUSES", ())
    monkeypatch.setattr(vision_datasets, "_member", fail)
    with pytest.raises(DataError, match="Input/output error") as caught:
        rows[0]
    assert not isinstance(caught.value, BadRow)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory (MemoryError). Fix: lower --batch-size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            "out of memory (RuntimeError: DefaultCPUAllocator: can't allocate memory",
        ),
        (ValueError("odd"), "cannot be scored (ValueError: odd). Fix: fetch the dataset again"),
    ],
    ids=["memory", "allocator", "data"],
)
def test_a_lack_of_memory_is_no_fault_of_a_dataset(tmp_path, error, line):
    with pytest.raises(DataError) as raised, dataset_guard(tmp_path):
        raise error
    assert str(raised.value).startswith(f"{tmp_path}: {line}")


def test_labels_of_many_categories_are_looked_up_once(tmp_path):
    """60,000 annotations of 60,000 categories: a lookup that scans takes minutes."""
    n = 60_000
    content = coco_with(
        images=[{"id": i, "file_name": "a.png"} for i in range(n)],
        annotations=[{"image_id": i, "category_id": i} for i in range(n)],
        categories=[{"id": i, "name": f"thing {i}"} for i in range(n)],
    )
    coco(tmp_path / "set", content)
    write(tmp_path / "set/classnames.txt", "\n".join(f"thing {i}" for i in range(n)))
    _, labels, _ = find(tmp_path, ["set"])[0][0].rows()
    assert labels.tolist() == list(range(n))
