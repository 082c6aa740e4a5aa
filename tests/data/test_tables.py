"""Tables as spreadsheets, scripts and data sets write them: quotes, headers, separators, keys."""

import base64
import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.cache import FeatureCache
from dimefm.data import Columns, open_rows
from dimefm.data.alignment import align
from dimefm.data.formats.table import TableShard
from dimefm.data.pairing import pair
from dimefm.errors import BadRow, CacheError, DataError
from dimefm.extract.extract import Settings, extract


def put(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def texts(path, **options):
    return [row.texts[0] for row in open_rows([path], "text", **options)]


CELLS = st.text(st.sampled_from('ab",;\n\r\té 9'), max_size=12)


@given(
    st.lists(st.tuples(CELLS, CELLS), max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
def test_a_csv_that_a_writer_wrote_is_read_as_a_reader_reads_it(
    tmp_path_factory, rows, end, quoting, has_mark
):
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, quoting=quoting)
    writer.writerows([("name", "title"), *rows])
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(file.getvalue().encode("utf-8-sig" if has_mark else "utf-8"))
    with path.open(encoding="utf-8-sig", newline="") as opened:
        _, *expected = [row for row in csv.reader(opened) if row]
    try:
        (shard,) = open_rows([path], "text").shards
    except DataError as error:
        assert "looks like a row" in str(error)  # 9 in a first column, and again inside a cell
        return
    assert [shard._cells(number) for number in range(len(shard))] == expected


@given(st.lists(st.text(st.sampled_from('ab",\n'), max_size=30), max_size=6))
def test_lines_with_any_quotes_are_read_or_refused(tmp_path_factory, lines):
    path = put(tmp_path_factory.mktemp("csv") / "x.csv", "name,title\n" + "\n".join(lines))
    with path.open(newline="") as opened:
        _, *expected = [row for row in csv.reader(opened) if row]
    try:
        (shard,) = open_rows([path], "text").shards
    except DataError as error:
        assert "a quote is left open" in str(error) and ", line " in str(error)
        return
    assert [shard._cells(number) for number in range(len(shard))] == expected


TITLES = ["first", '"The Hobbit, 1937', "third", 'the 12" vinyl', '"quoted" word', "last"]
OPEN = {
    "never closed": ["first", '"open', "third", "fourth", "last"],
    "closed by the next quote": ["first", '"open', "third", 'the 12" vinyl', "last"],
    "closed at the end of a line": ["first", '"open', "third", 'twelve 12"', "last"],
    "closed by a quoted title": ["first", '"open', "third", '"quoted"', "last"],
    "the first row": ['"open', "second", "third", 'twelve 12"', "last"],
}


def table_of(folder, titles, ending, name="{}.jpg"):
    separator = "\t" if ending == "tsv" else ","
    rows = [f"{name.format(number)}{separator}{title}" for number, title in enumerate(titles)]
    return put(folder / f"x.{ending}", f"file{separator}title\n" + "\n".join(rows) + "\n")


@pytest.mark.parametrize("titles", [TITLES, *OPEN.values()], ids=["mixed", *OPEN])
def test_a_quote_in_a_tsv_is_a_character(tmp_path, titles):
    assert texts(table_of(tmp_path, titles, "tsv")) == titles


@pytest.mark.parametrize("case", OPEN)
@pytest.mark.parametrize("name", ["{}.jpg", "https://x.example/{}", "k{}", "{}"])
def test_a_quote_that_is_left_open_in_a_csv_is_refused_with_its_line(tmp_path, case, name):
    titles = OPEN[case]
    path = table_of(tmp_path, titles, "csv", name)
    line = 2 + next(number for number, title in enumerate(titles) if title.startswith('"open'))
    with pytest.raises(DataError, match=rf"x\.csv, line {line}: a quote is left open .*Fix: "):
        open_rows([path], "text")


def test_line_breaks_inside_quotes_are_no_open_quotes(tmp_path):
    titles = ["two\nlines, and\n7 more", "said hi", "a, b\r\n\r\nc, d\ne"]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows([("file", "title"), *((f"{n}.jpg", text) for n, text in enumerate(titles))])
    assert texts(put(tmp_path / "x.csv", file.getvalue())) == titles


def test_commas_in_the_quotes_of_the_first_row_tell_no_column(tmp_path):
    table = 'title,file\n"a, b",0.jpg\n"two\nlines, and\nmore",1.jpg\n'
    assert texts(put(tmp_path / "x.csv", table)) == ["a, b", "two\nlines, and\nmore"]


@pytest.mark.parametrize("block", range(1, 16))
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_at_the_end_of_a_block(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr("dimefm.data.lines.BLOCK", block)
    titles = ["a longer line", f"two{end}lines", "the last"]
    rows = [f'{number},"{title}"' for number, title in enumerate(titles)]
    assert texts(put(tmp_path / "x.csv", end.join(["key,title", *rows]))) == titles


def test_a_tsv_that_a_writer_put_into_quotes_is_unquoted(tmp_path):
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter="\t", quoting=quoting)
        writer.writerows([("file", "title"), ("0.jpg", 'said "hi"'), ("1.jpg", "plain")])
        assert texts(put(tmp_path / "x.tsv", file.getvalue())) == ['said "hi"', "plain"]


def test_an_open_clip_csv_with_tabs_keeps_the_rules_of_a_csv(tmp_path):
    path = put(tmp_path / "x.csv", 'filepath\ttitle\n0.jpg\t"two\nlines"\n1.jpg\tsaid "hi"\n')
    assert texts(path) == ["two\nlines", 'said "hi"']


@pytest.mark.parametrize("separator", [";", "|"])
def test_another_separator_is_asked_for(tmp_path, separator):
    header = separator.join(("key", "title"))
    path = put(tmp_path / "x.csv", f"{header}\n0{separator}a, b\n")
    with pytest.raises(DataError, match="Fix: .*--separator"):
        texts(path)
    assert texts(path, columns=Columns(separator=separator)) == ["a, b"]


@pytest.mark.parametrize("header", ["title,a;b", "title,path;x", "title,x|key"])
def test_a_header_with_a_known_column_between_commas_is_cut_at_commas(tmp_path, header):
    assert texts(put(tmp_path / "x.csv", f"{header}\none;two,3\n")) == ["one;two"]


# --- headers that are missing


CAPTIONS = ["a typical bus stop in a small town", "actor looked stunning", "the ruins at sunset"]
URLS = [f"http://photos.example.org/{number}.jpg" for number in range(3)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conceptual_captions_as_published_are_captions_with_urls_as_keys(tmp_path, end):
    rows = zip(CAPTIONS, URLS, strict=True)
    path = put(tmp_path / "gcc.tsv", "".join(f"{text}\t{url}{end}" for text, url in rows))
    (shard,) = open_rows([path], "text").shards
    assert [row.texts for row in shard] == [(text,) for text in CAPTIONS]
    assert shard.keys() == URLS == [row.key for row in shard]


def test_urls_before_captions_are_keys_as_well(tmp_path):
    rows = zip(URLS, CAPTIONS, strict=True)
    path = put(tmp_path / "cc12m.tsv", "".join(f"{url}\t{text}\n" for url, text in rows))
    (shard,) = open_rows([path], "text").shards
    assert [(row.key, *row.texts) for row in shard] == list(zip(URLS, CAPTIONS, strict=True))


def test_urls_that_belong_to_no_captions_are_refused(tmp_path):
    path = put(tmp_path / "x.tsv", "".join(f"{n}\t{url}\n" for n, url in enumerate(URLS)))
    for kind, wanted in (("text", "captions"), ("image", "base64")):
        with pytest.raises(DataError, match=f"holds URLs, expected .*{wanted}. Fix: .*img2dataset"):
            open_rows([path], kind)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize(
    "first", ["0.jpg,text", "photo.png,title,x", "https://a.example/b,caption", "text,a/b.jpeg"]
)
def test_a_first_row_is_not_taken_for_a_header(tmp_path, ending, first):
    text = f"{first}\n{first}\n"
    path = put(tmp_path / f"x.{ending}", text.replace(",", "\t") if ending == "tsv" else text)
    with pytest.raises(DataError, match="first line looks like a row .*Fix: add a line"):
        open_rows([path], "text", input_format="table")


def test_a_table_without_known_names_says_what_to_add(tmp_path):
    path = put(tmp_path / "x.csv", f'"{"long " * 99}",{URLS[0]}\n')
    with pytest.raises(DataError, match="add a first line with the names") as caught:
        open_rows([path], "text")
    assert len(str(caught.value)) < 500
    with pytest.raises(DataError, match="--separator"):
        open_rows([put(tmp_path / "y.csv", "image_name| number| comment\n0.jpg| 0| a\n")], "text")


# --- one bad row


def test_a_few_rows_of_another_encoding_are_bad_rows_and_many_are_another_encoding(tmp_path):
    rows = [b"k%d,title %d" % (number, number) for number in range(200)]
    rows[7] = b"k7,caf\xe9"
    path = tmp_path / "x.csv"
    path.write_bytes(b"\n".join([b"key,title", *rows]))
    (shard,) = open_rows([path], "text").shards
    assert shard[6].texts == ("title 6",) and shard[8].key == shard.keys()[8] == "k8"
    with pytest.raises(BadRow, match="is not UTF-8"):
        shard[7]
    path.write_bytes(b"\n".join([b"key,title", *rows[5:20]]))
    with pytest.raises(DataError, match=r"row 2 is not UTF-8 .*byte 0xe9.*Fix: save it as UTF-8"):
        open_rows([path], "text")
    path.write_bytes(b"cl\xe9,title\na,b\n")
    with pytest.raises(DataError, match=r"first line is not UTF-8 .*Fix: save it as UTF-8"):
        open_rows([path], "text")


def test_the_rows_around_a_bad_one_are_read(tmp_path):
    digits = "1" * 5000
    lines = ["file,title,label", "a,one,1", "b,two,3,too many", "c", f"d,four,{digits}", "e,five,5"]
    path = put(tmp_path / "x.csv", "\n".join(lines))
    for name in "abcde":
        (tmp_path / name).write_bytes(b"image")
    (shard,) = open_rows([path], "image").shards
    assert shard[0].label == 1 and shard[4].label == 5
    assert shard.keys() == list("abcde")
    assert shard.labels()[0] == 1 and shard.labels()[3:] == [None, 5]
    for number, reason in ((1, "4 columns"), (2, "1 columns"), (3, "5,000 digits")):
        with pytest.raises(BadRow, match=reason):
            shard[number]


# --- images in cells


def png_rows(picture):
    return [base64.b64encode(picture(number)).decode() for number in range(2)]


FORMS = {
    "plain": lambda text: text,
    "data URL": lambda text: f"data:image/png;base64,{text}",
    "data URL with a name": lambda text: f"data:image/png;name=a.png;base64,{text}",
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "no padding": lambda text: text.rstrip("="),
    "broken lines": lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
    "bytes": lambda text: text.encode(),
}


def cells_table(folder, ending, name, cells, more=None):
    """Return a table of a column of cells."""
    path = folder / f"x.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({name: cells, **(more or {})}), path)
    elif ending == "jsonl":
        put(path, "".join(json.dumps({name: cell}) + "\n" for cell in cells))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([[name, "n"], *([cell, 1] for cell in cells)])
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_base64_is_decoded(tmp_path, picture, ending, form, format):
    if form == "bytes" and ending != "parquet":
        pytest.skip("has no bytes")
    images = [picture(number, format=format) for number in range(2)]
    cells = [FORMS[form](base64.b64encode(image).decode()) for image in images]
    (shard,) = open_rows([cells_table(tmp_path, ending, "image", cells)], "image").shards
    assert [row.image for row in shard] == images
    assert shard.keys() == ["0", "1"] == [row.key for row in shard]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:300] + "#" + text[300:],
        lambda text: "data:image/png;base64," + text[:-1] + "*",
        lambda text: "!" + text * 9,
        lambda text: text[:1000] + "...",
        lambda text: "/9j/4" + text[:1500] + "\x1b[31m",
    ],
)
def test_damaged_base64_is_a_bad_row_and_its_message_short(tmp_path, picture, ending, damage):
    cell = base64.b64encode(picture(0, size=(60, 60))).decode()
    path = cells_table(tmp_path, ending, "image", [damage(cell), cell])
    rows = open_rows([path], "image")
    with pytest.raises(BadRow, match="base64") as caught:
        rows[0]
    assert len(str(caught.value)) < 250 and str(caught.value).isprintable()
    assert rows[1].image == picture(0, size=(60, 60))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_url_is_no_file(tmp_path, ending):
    path = cells_table(tmp_path, ending, "image", ["https://a.example/b.jpg"])
    with pytest.raises(BadRow, match="names the URL https://a.example/b.jpg, .*Fix: "):
        open_rows([path], "image")[0]


def test_names_of_files_are_no_base64(tmp_path, picture):
    names = ["9j/4AAQSkZJRg", "iVBORw0KGgo.png", "Qk" + "a" * 100, "AAAA" * 20]
    (tmp_path / "9j").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(picture(0))
    rows = open_rows([cells_table(tmp_path, "jsonl", "image", names)], "image")
    assert [row.image for row in rows] == [picture(0)] * 4
    assert rows.shards[0].keys() == names


STRUCTS = {
    "bytes and path": lambda image: {"bytes": image, "path": "0.png"},
    "bytes only": lambda image: {"bytes": image},
    "bytes, null path": lambda image: {"bytes": image, "path": None},
    "path, null bytes": lambda image: {"bytes": None, "path": "0.png"},
    "path, empty bytes": lambda image: {"bytes": b"", "path": "0.png"},
    "path only": lambda image: {"path": "0.png"},
    "list of bytes": lambda image: [image],
    "list of structs": lambda image: [{"bytes": image, "path": None}],
    "list of numbers": lambda image: list(image),
    "list with a null": lambda image: [None, image],
    "name": lambda image: "0.png",
}


@pytest.mark.parametrize("form", STRUCTS)
def test_every_struct_of_an_image_is_read(tmp_path, picture, form):
    (tmp_path / "0.png").write_bytes(picture(0))
    cell = STRUCTS[form](picture(0))
    empty = [] if isinstance(cell, list) else None
    cells = [cell, None, cell] if not isinstance(cell, list) else [cell, empty, cell]
    rows = open_rows([cells_table(tmp_path, "parquet", "image", cells)], "image")
    assert rows[0].image == rows[2].image == picture(0)
    with pytest.raises(BadRow, match="no image bytes"):
        rows[1]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([b"a", b"b"], "2 images, expected one"),
        ([300, 1], "numbers that are no bytes"),
        ({"bytes": None, "path": None}, "no image bytes"),
        ([None], "no image bytes"),
        (7, "no image bytes"),
        ({"bytes": b"", "path": ""}, "no image bytes"),
    ],
)
def test_a_struct_without_one_image_is_a_bad_row(tmp_path, cell, reason):
    rows = open_rows([cells_table(tmp_path, "parquet", "image", [cell])], "image")
    with pytest.raises(BadRow, match=reason):
        rows[0]


# --- the keys of pairs


def pairs(folder, ending, picture):
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture(number))
    names = [f"{number}.png" for number in range(4)]
    captions = [f"picture number {number}" for number in range(4)]
    path = folder / f"pairs.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"filepath": names, "caption": captions}), path)
    elif ending == "jsonl":
        rows = zip(names, captions, strict=True)
        put(path, "".join(json.dumps({"filepath": a, "caption": b}) + "\n" for a, b in rows))
    else:
        table_of(folder, captions, ending, "{}.png").rename(path)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("columns", [None, Columns(image="filepath")])
def test_images_and_texts_of_one_table_have_the_same_keys(tmp_path, picture, ending, columns):
    path = pairs(tmp_path, ending, picture)
    if columns is not None and ending in ("csv", "tsv"):
        columns = Columns(image="file")
    keys = {
        kind: open_rows([path], kind, columns=columns).shards[0].keys()
        for kind in ("image", "text", "pair")
    }
    assert keys["image"] == keys["text"] == keys["pair"]
    images, captions = pair(keys["image"], keys["text"])
    assert images.tolist() == captions.tolist() == [0, 1, 2, 3]
    rows = open_rows([path], "text", columns=columns)
    assert [row.key for row in rows] == keys["text"]


def extract_by_number(monkeypatch, teacher, rows, out, **settings):
    """Extract as it was when texts of tables had their number as key."""
    with monkeypatch.context() as patch:
        patch.setattr(TableShard, "_key", lambda self, cells, index, with_files=True: str(index))
        extract(teacher, rows, "text", out, Settings(progress=False, **settings))
    return FeatureCache(out)


@pytest.mark.parametrize("part", [None, 2])
def test_a_cache_of_before_matches_by_the_numbers_of_rows(
    tmp_path, picture, tiny_teacher, monkeypatch, part
):
    path = pairs(tmp_path, "csv", picture)
    if part is not None:
        monkeypatch.setattr("dimefm.data.subshards.ROWS_PER_PART", part)
    rows = open_rows([path], "text")
    cache = extract_by_number(monkeypatch, tiny_teacher, rows, tmp_path / "cache")
    assert len(align(rows, cache)) == 4


def test_words_that_were_drawn_by_the_numbers_of_rows_are_refused(
    tmp_path, picture, tiny_teacher, monkeypatch
):
    from dimefm.data.views.text_views import TextPolicy

    rows = open_rows([pairs(tmp_path, "csv", picture)], "text")
    policy = TextPolicy.parse(2, {"augment": "eda"})
    cache = extract_by_number(
        monkeypatch, tiny_teacher, rows, tmp_path / "cache", text_views=policy
    )
    with pytest.raises(CacheError, match="drawn by row numbers.*Fix: extract the texts again"):
        align(rows, cache)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("name", ["TEXT", "Title", "CAPTION"])
def test_names_in_capitals_are_asked_for(tmp_path, ending, name):
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table([["http://x.example"], ["a cat"]], names=["URL", name]), path)
    else:
        mark = "," if ending == "csv" else "\t"
        put(path, f"URL{mark}{name}\nhttp://x.example{mark}a cat\n")
    with pytest.raises(DataError, match="Fix: name it with --text-column"):
        texts(path)
    assert texts(path, columns=Columns(text=name)) == ["a cat"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("names", "column"),
    [(["title", "title"], None), (["x", "title", "x"], "x"), (["title", "key", "key"], None)],
)
def test_a_name_of_two_columns_is_refused(tmp_path, ending, names, column):
    path = tmp_path / f"a.{ending}"
    cells = [f"cell {number}" for number in range(len(names))]
    if ending == "parquet":
        pq.write_table(pa.table([[cell] for cell in cells], names=names), path)
    else:
        mark = "," if ending == "csv" else "\t"
        put(path, f"{mark.join(names)}\n{mark.join(cells)}\n")
    with pytest.raises(DataError, match="2 columns are named '.*', expected one. Fix: rename"):
        texts(path, columns=Columns(text=column))
