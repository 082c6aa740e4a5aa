"""What every raw format keeps; a new file in ``data/formats/`` needs one builder here and is then
tested like the others.

A builder writes the same five rows: images and, where the format can hold them, sentences. Row 2 is
broken.
"""

import base64
import csv
import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm import plugins
from dimefm.data import Columns, open_rows
from dimefm.errors import BadRow, DataError

SENTENCES = ["a red cat", "two dogs, one bowl", None, "café — naïve 你好", 'a "quoted" word']
BROKEN = 2


@pytest.fixture(scope="module")
def images(picture):
    return [picture(i) for i in range(5)]


def folder(root, images, kind):
    for i, data in enumerate(images):
        path = root / "photos" / ("cat" if i < 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i == BROKEN:
            path.symlink_to("nowhere.png")
        else:
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(SENTENCES[i] + "\n", encoding="utf-8")
    return "photos"


def tar(root, images, kind):
    with tarfile.open(root / "shard.tar", "w") as file:
        for i, data in enumerate(images):
            members = {"png": data, "txt": (SENTENCES[i] or "").encode(), "cls": b"7"}
            if i == BROKEN:
                members = {"cls": b"7"}
            for ending, content in members.items():
                entry = tarfile.TarInfo(f"set/{i:03d}.{ending}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return "shard.tar"


def parquet(root, images, kind):
    columns = {
        "key": [f"k{i}" for i in range(5)],
        "image": [None if i == BROKEN else data for i, data in enumerate(images)],
        "caption": SENTENCES,
    }
    pq.write_table(pa.table(columns), root / "rows.parquet", row_group_size=2)
    return "rows.parquet"


def files(root, images):
    for i, data in enumerate(images):
        if i != BROKEN:
            (root / f"{i}.png").write_bytes(data)


def table(root, images, kind):
    files(root, images)
    with (root / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title"])
        for i in range(5):
            writer.writerow([f"{i}.png"] if i == BROKEN else [f"{i}.png", SENTENCES[i]])
    return "rows.csv"


def jsonl(root, images, kind):
    files(root, images)
    lines = [json.dumps({"filepath": f"{i}.png", "caption": SENTENCES[i]}) for i in range(5)]
    lines[BROKEN] = '{"filepath": '
    (root / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "rows.jsonl"


def text(root, images, kind):
    lines = [(sentence or "").encode() for sentence in SENTENCES]
    lines[BROKEN] = b"\xff\xfe"
    (root / "rows.txt").write_bytes(b"\n".join(lines))
    return "rows.txt"


def tsv(root, images, kind):
    lines = []
    for i, data in enumerate(images):
        value = base64.b64encode(data) if kind == "image" else (SENTENCES[i] or "").encode()
        lines.append(b"k%d" % i if i == BROKEN else b"k%d\t%b" % (i, value))
    (root / "rows.tsv").write_bytes(b"\n".join(lines) + b"\n")
    return "rows.tsv"


def captions(root, images, kind):
    lines = []
    for i in range(5):
        sentence = b"\xff" if i == BROKEN else SENTENCES[i].encode()
        lines.append(b"%d.jpg\t%b\n" % (i, sentence))
    (root / "captions.txt").write_bytes(b"".join(lines))
    return "captions.txt"


BUILDERS = {
    builder.__name__: builder
    for builder in (captions, folder, tar, parquet, table, jsonl, text, tsv)
}
CASES = [
    (name, kind)
    for name in plugins.names("sources")
    for kind in ("image", "text", "pair")
    if kind in plugins.module("sources", name).KINDS
    or (
        kind == "pair"
        and {"image", "text"} <= plugins.module("sources", name).KINDS
        and name != "tsv"
    )
]


def test_every_format_has_a_builder_here():
    assert sorted(BUILDERS) == plugins.names("sources")


@pytest.fixture(params=CASES, ids="-".join)
def case(request, tmp_path, images):
    """Return (rows, kind) of one format."""
    name, kind = request.param
    return open_rows([BUILDERS[name](tmp_path, images, kind)], kind, dataroot=tmp_path), kind


def row_or_reason(rows, index):
    try:
        return rows[index]
    except BadRow as error:
        return str(error)


def test_holds_the_rows_that_were_written(case, images):
    rows, kind = case
    assert len(rows) == sum(len(shard) for shard in rows.shards) == 5
    for index in (0, 1, 3, 4):
        row = rows[index]
        assert row.image == (images[index] if kind != "text" else None)
        assert row.texts == ((SENTENCES[index],) if kind != "image" else ())


def test_the_format_is_told_from_the_source(tmp_path, images):
    for name, kind in CASES:
        here = tmp_path / f"{name}-{kind}"
        here.mkdir()
        source = BUILDERS[name](here, images, kind)
        shard = open_rows([source], kind, dataroot=here).shards[0]
        assert type(shard).__module__ == f"dimefm.data.formats.{name}"


def test_keys_are_those_of_the_rows_in_order(case):
    rows, _ = case
    keys = [key for shard in rows.shards for key in shard.keys()]
    assert len(keys) == len(set(keys)) == 5
    assert [keys[i] for i in (0, 1, 3, 4)] == [rows[i].key for i in (0, 1, 3, 4)]
    assert all(isinstance(key, str) for key in keys)


def test_random_access_gives_what_reading_in_order_gives(case):
    rows, _ = case
    in_order = [row_or_reason(rows, index) for index in range(5)]
    assert {index: row_or_reason(rows, index) for index in (4, 2, 0, 3, 1, 4, 0)} == dict(
        enumerate(in_order)
    )


def test_a_broken_row_says_why_and_harms_no_other(case):
    rows, _ = case
    with pytest.raises(BadRow) as caught:
        rows[BROKEN]
    assert len(str(caught.value)) > 8 and "\n" not in str(caught.value)
    assert rows[BROKEN + 1].key == rows.shards[0].keys()[BROKEN + 1]


def test_a_shard_can_go_to_another_process(case):
    rows, _ = case
    rows[0]
    again = pickle.loads(pickle.dumps(rows))
    assert [row_or_reason(again, i) for i in range(5)] == [row_or_reason(rows, i) for i in range(5)]
    assert [shard.keys() for shard in again.shards] == [shard.keys() for shard in rows.shards]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_shard_serves_a_forked_process(case):
    rows, _ = case
    expected = [row_or_reason(rows, i) for i in range(5)]
    end, start = os.pipe()
    process = os.fork()
    if process == 0:
        same = False
        try:
            same = [row_or_reason(rows, i) for i in range(5)] == expected
        finally:
            os.write(start, b"same" if same else b"diff")
            os._exit(0)
    os.waitpid(process, 0)
    assert os.read(end, 4) == b"same"
    assert [row_or_reason(rows, i) for i in range(5)] == expected
    os.close(end)
    os.close(start)


def test_threads_read_the_same_rows(case):
    rows, _ = case
    expected = [row_or_reason(rows, i) for i in range(5)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: row_or_reason(rows, i % 5), range(100)))
    assert found == expected * 20


def test_a_row_outside_is_an_error(case):
    rows, _ = case
    for index in (5, -1):
        with pytest.raises(IndexError):
            rows[index]


ESCAPES = ["../secret.png", "sub/../../secret.png", "{absolute}", "link.png"]


@pytest.mark.parametrize("name", ["table", "jsonl", "parquet"])
@pytest.mark.parametrize("escape", ESCAPES)
def test_a_file_name_that_leaves_the_root_is_refused_and_its_row_named(
    tmp_path, images, name, escape
):
    root = tmp_path / "root"
    root.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(images[0])
    (root / "inside.png").write_bytes(images[1])
    (root / "link.png").symlink_to(secret)
    names = ["inside.png", escape.format(absolute=secret)]
    if name == "table":
        (root / "x.csv").write_text("filepath\n" + "\n".join(names) + "\n")
    elif name == "jsonl":
        (root / "x.jsonl").write_text(
            "".join(json.dumps({"filepath": file}) + "\n" for file in names)
        )
    else:
        pq.write_table(pa.table({"image": names}), root / "x.parquet")
    rows = open_rows([root / f"x.{'csv' if name == 'table' else name}"], "image")
    assert rows[0].image == images[1]
    with pytest.raises(DataError, match="row 1: .*leads outside .*--dataroot"):
        rows[1]


def test_a_dataroot_lets_a_table_name_files_anywhere_below_it(tmp_path, images):
    (tmp_path / "lists").mkdir()
    (tmp_path / "a.png").write_bytes(images[0])
    (tmp_path / "lists" / "x.csv").write_text("filepath\na.png\n../a.png\n")
    rows = open_rows(["lists/x.csv"], "image", dataroot=tmp_path, columns=Columns(root=tmp_path))
    assert rows[0].image == images[0]
    with pytest.raises(DataError, match="leads outside"):
        rows[1]
