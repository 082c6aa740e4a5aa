"""From what the user names to shards: lists, patterns, folders, a data root; and every way that
this can be wrong.
"""

import io
import os
import tarfile

import pytest

from dimefm.data import Columns, open_rows
from dimefm.errors import DataError


@pytest.fixture
def tree(tmp_path, picture):
    """Return a folder: texts/{a,b,c}.txt, photos/{1,2}.png, mixed/{a.txt, b.jsonl}."""
    for name in "abc":
        path = tmp_path / "texts" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name} one\n{name} two\n")
    (tmp_path / "photos").mkdir()
    for i in (1, 2):
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("plain\n")
    (tmp_path / "mixed" / "b.jsonl").write_text('"quoted"\n')
    return tmp_path


def names(rows):
    return [shard.name for shard in rows.shards]


def test_a_list_is_read_in_its_order_without_comments_and_blank_lines(tree):
    (tree / "x.list").write_text("# three shards\n\ntexts/c.txt\n  texts/a.txt  \n#texts/b.txt\n")
    for rows in (
        open_rows([tree / "x.list"], "text"),
        open_rows(["x.list"], "text", dataroot=tree),
    ):
        assert [row.texts[0] for row in rows] == ["c one", "c two", "a one", "a two"]
    assert names(open_rows(["x.list"], "text", dataroot=tree)) == ["texts/c.txt", "texts/a.txt"]


def test_a_list_elsewhere_is_relative_to_the_dataroot(tree, tmp_path_factory):
    lists = tmp_path_factory.mktemp("lists")
    (lists / "x.list").write_text("texts/b.txt")
    assert names(open_rows([lists / "x.list"], "text", dataroot=tree)) == ["texts/b.txt"]
    with pytest.raises(DataError, match=r"texts/b\.txt: no such file or folder.*--dataroot"):
        open_rows([lists / "x.list"], "text")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the list is empty"),
        (b"# only words\n\n", "the list is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"texts/a.txt\nx.list\n", "names another list"),
        (b"texts/none.txt", "no such file"),
        (b"texts/a.txt\ntexts/a.txt\n", "listed twice"),
        (b"texts/a.txt\ntexts/../texts/a.txt\n", "listed twice"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(tree, content, reason):
    (tree / "x.list").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_rows([tree / "x.list"], "text")


def test_a_pattern_gives_its_matches_sorted(tree):
    assert names(open_rows([tree / "texts/[ac].txt"], "text")) == ["a.txt", "c.txt"]
    assert names(open_rows(["texts/*.txt"], "text", dataroot=tree)) == [
        "texts/a.txt",
        "texts/b.txt",
        "texts/c.txt",
    ]
    with pytest.raises(DataError, match="no pattern that matches"):
        open_rows([tree / "texts/*.tar"], "text")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    (tree / "odd[1].txt").write_text("odd\n")
    assert open_rows([tree / "odd[1].txt"], "text")[0].texts == ("odd",)


def test_a_folder_of_shards_is_its_shards_and_a_folder_of_images_is_one_source(tree):
    assert names(open_rows([tree / "texts"], "text")) == ["a.txt", "b.txt", "c.txt"]
    assert names(open_rows([tree / "photos"], "image")) == ["photos"]
    assert [row.key for row in open_rows([tree / "photos"], "image")] == ["1.png", "2.png"]


def test_class_names_beside_shards_are_not_sentences(tree):
    (tree / "texts" / "classnames.txt").write_text("cat\n")
    (tree / "texts" / "templates.txt").write_text("a {}\n")
    assert names(open_rows([tree / "texts"], "text")) == ["a.txt", "b.txt", "c.txt"]


def test_the_input_format_limits_what_a_folder_gives(tree):
    assert names(open_rows([tree / "mixed"], "text")) == ["a.txt", "b.jsonl"]
    assert names(open_rows([tree / "mixed"], "text", input_format="jsonl")) == ["b.jsonl"]


def test_sources_keep_their_order_and_get_names_below_their_common_folder(tree):
    rows = open_rows([tree / "texts/b.txt", tree / "mixed", tree / "texts/a.txt"], "text")
    assert names(rows) == ["texts/b.txt", "mixed/a.txt", "mixed/b.jsonl", "texts/a.txt"]
    assert [rows[i].texts[0] for i in range(len(rows))] == [
        "b one",
        "b two",
        "plain",
        "quoted",
        "a one",
        "a two",
    ]


def test_names_do_not_depend_on_where_the_command_runs(tree, monkeypatch):
    monkeypatch.chdir(tree / "texts")
    assert names(open_rows(["a.txt", "b.txt"], "text")) == ["a.txt", "b.txt"]
    monkeypatch.chdir(tree)
    assert names(open_rows(["texts/a.txt", "texts/b.txt"], "text")) == ["a.txt", "b.txt"]
    assert open_rows([os.path.relpath(tree / "photos")], "image").shards[0].name == "photos"


@pytest.mark.parametrize(
    ("sources", "options", "reason"),
    [
        (["nowhere"], {}, "nowhere: no such file or folder"),
        (["texts/a.txt"], {"dataroot": "none"}, "--dataroot .*none: there is no such folder"),
        ([], {}, "no text source was given"),
        (["texts", "texts/b.txt"], {}, r"b\.txt is listed twice"),
        (
            ["texts/a.txt"],
            {"input_format": "txt"},
            "unknown input format 'txt': did you mean 'text'",
        ),
        (
            ["photos/1.png"],
            {},
            r"1\.png: cannot tell its format for text rows.*pass --input-format",
        ),
        (["photos"], {"kind": "pair", "input_format": "folder"}, None),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(tree, sources, options, reason):
    options = {"kind": "text", "dataroot": tree, **options}
    if options["dataroot"] != tree:
        options["dataroot"] = tree / options["dataroot"]
    if reason is None:
        assert open_rows(sources, **options)[0].image
        return
    with pytest.raises(DataError, match=reason):
        open_rows(sources, **options)


def test_a_source_that_the_user_names_may_lie_outside_the_dataroot(tree):
    rows = open_rows([tree / "texts/a.txt"], "text", dataroot=tree / "photos")
    assert [shard.name for shard in rows.shards] == ["a.txt"]


def test_an_entry_of_a_list_may_not(tree):
    (tree / "photos/out.list").write_text("../texts/a.txt\n")
    with pytest.raises(DataError, match=r"out\.list: '\.\./texts/a\.txt' leads outside"):
        open_rows([tree / "photos/out.list"], "text", dataroot=tree / "photos")


def test_two_sources_of_one_name_are_refused(tree, tmp_path):
    (tree / "photos/a.txt").write_text("one\n")
    with pytest.raises(DataError, match="two sources are both called a.txt"):
        open_rows(["a.txt", tree / "texts/a.txt"], "text", dataroot=tree / "photos")


def test_an_empty_folder_says_that_it_holds_no_images(tmp_path):
    with pytest.raises(DataError, match="no image files .* and no shards"):
        open_rows([tmp_path], "image")


def test_a_tsv_that_could_be_two_things_asks_for_its_format(tmp_path):
    (tmp_path / "x.tsv").write_text("id\tsentence\n1\ta cat\n")
    with pytest.raises(DataError, match="could be table or tsv.*--input-format"):
        open_rows([tmp_path / "x.tsv"], "text")
    assert [row.texts for row in open_rows([tmp_path / "x.tsv"], "text", input_format="table")] == [
        ("a cat",)
    ]
    assert len(open_rows([tmp_path / "x.tsv"], "text", input_format="tsv")) == 2


@pytest.mark.parametrize("separator", [";", "|", "\t", " "])
def test_a_table_may_have_another_separator_and_other_columns(tmp_path, separator):
    (tmp_path / "x.csv").write_text(
        separator.join(["words", "nr"]) + "\n" + separator.join(["cat", "7"]) + "\n"
    )
    rows = open_rows(
        [tmp_path / "x.csv"], "text", columns=Columns(text="words", key="nr", separator=separator)
    )
    assert [(row.key, row.texts) for row in rows] == [("7", ("cat",))]


@pytest.mark.parametrize(
    ("content", "columns", "reason"),
    [
        (
            "a,b\n1,2\n",
            {},
            (
                "no text column; expected one of .*title.*, found: a, b. Fix: name it with"
                " --text-column"
            ),
        ),
        (
            "title\nx\n",
            {"text": "caption"},
            "no column 'caption' for the text; columns found: title",
        ),
        ("", {}, "the table is empty"),
        ("title\nx\n", {"separator": "||"}, "--separator .*expected one character"),
    ],
)
def test_a_table_without_the_wanted_column_is_refused(tmp_path, content, columns, reason):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(DataError, match=reason):
        open_rows([tmp_path / "x.csv"], "text", columns=Columns(**columns))


def test_quoted_cells_may_hold_separators_and_newlines(tmp_path):
    (tmp_path / "x.csv").write_text('title\n"a, b\nc ""d"""\nplain\n\n')
    assert [row.texts[0] for row in open_rows([tmp_path / "x.csv"], "text")] == [
        'a, b\nc "d"',
        "plain",
    ]


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.txt.gz", "x.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=f"{name}: not .*fetch or write it again"):
        open_rows([tmp_path / name], "image" if name in ("x.tar", "x.parquet") else "text")


def test_file_names_that_are_not_utf8_are_read_under_a_readable_key(tmp_path, picture):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(picture(0))
    rows = open_rows([tmp_path], "image")
    assert rows[0].image == picture(0)
    assert rows[0].key == rows.shards[0].keys()[0] == "caf\\udce9.png"


def test_large_folders_become_several_shards_in_order(tree, picture, monkeypatch):
    from dimefm.data.formats import folder

    monkeypatch.setattr(folder, "ROWS_PER_SHARD", 3)
    for i in range(3, 9):
        (tree / "photos" / f"{i}.png").write_bytes(picture(i))
    rows = open_rows([tree / "photos"], "image")
    assert names(rows) == ["photos/00000", "photos/00001", "photos/00002"]
    assert [row.key for row in rows] == [f"{i}.png" for i in range(1, 9)]
    assert [rows[i].image for i in (7, 0, 3)] == [picture(8), picture(1), picture(4)]


def test_a_tar_with_a_damaged_header_in_its_middle_is_refused(tmp_path, picture):
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for i in range(3):
            entry = tarfile.TarInfo(f"{i}.png")
            entry.size = len(picture(i))
            file.addfile(entry, io.BytesIO(picture(i)))
    data = bytearray((tmp_path / "x.tar").read_bytes())
    assert len(open_rows([tmp_path / "x.tar"], "image")) == 3
    place = data.index(b"1.png")
    data[place] = ord("x")  # the checksum of the header does not fit any more
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match=f"x.tar: not a whole.*no end mark at byte {place}"):
        open_rows([tmp_path / "x.tar"], "image")


def test_a_linked_subfolder_is_refused_and_not_left_out_silently(tree, tmp_path_factory):
    (tree / "photos/linked").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(
        DataError, match=r"photos/linked: is a link to a folder, which is not followed"
    ):
        open_rows(["photos"], dataroot=tree, input_format="folder")


@pytest.mark.parametrize(
    "columns", [Columns(), Columns(text="title"), Columns(text="words, in full")]
)
def test_a_csv_with_tabs_as_open_clip_writes_it_is_recognised(tmp_path, columns):
    (tmp_path / "x.csv").write_text(
        "filepath\ttitle\twords, in full\nx, y.png\ta cat, sitting\tit\n"
    )
    rows = open_rows([tmp_path / "x.csv"], "text", columns=columns)
    assert [row.texts for row in rows] == [
        ("it",) if columns.text == "words, in full" else ("a cat, sitting",)
    ]


def test_a_csv_with_commas_keeps_its_tabs(tmp_path):
    (tmp_path / "x.csv").write_text('"title",a\tb\na cat,1\t2\n')
    assert [row.texts for row in open_rows([tmp_path / "x.csv"], "text")] == [("a cat",)]
    (tmp_path / "y.csv").write_text("words,a\tb\na cat,1\t2\n")
    assert [
        row.texts for row in open_rows([tmp_path / "y.csv"], "text", columns=Columns(text="words"))
    ] == [("a cat",)]


@pytest.mark.parametrize("separator", ["tab", "\\t", "\t"])
def test_a_tab_has_three_names(tmp_path, separator):
    (tmp_path / "x.csv").write_text("title\ta,b\na cat\t1\n")
    assert open_rows([tmp_path / "x.csv"], "text", columns=Columns(separator=separator))[
        0
    ].texts == ("a cat",)


@pytest.mark.parametrize("inner", ["", "cat/"])
def test_a_stray_table_does_not_hijack_a_folder_of_images(tree, inner):
    photos = tree / "photos"
    if inner:
        (photos / inner).mkdir()
        for i in (1, 2):
            (photos / f"{i}.png").rename(photos / inner / f"{i}.png")
    (photos / "labels.csv").write_text(f"filepath,label\n{inner}1.png,cat\n")
    for kind in ("image", "pair"):
        with pytest.raises(
            DataError,
            match=(
                r"photos: holds images and 1 shard file \(labels\.csv\). Fix: pass --input-format"
                r" folder"
            ),
        ):
            open_rows([photos], kind)
    assert len(open_rows([photos], "image", input_format="folder")) == 2
    assert len(open_rows([photos], "image", input_format="table")) == 1
    assert len(open_rows([photos / "labels.csv"], "image")) == 1


def test_words_about_a_set_are_no_sentences(tree):
    for name in ("README.txt", "LICENSE.txt", "classnames.txt", "templates.txt", "Notice.txt"):
        (tree / "texts" / name).write_text("about\n")
    assert names(open_rows([tree / "texts"], "text")) == ["a.txt", "b.txt", "c.txt"]
    assert open_rows([tree / "texts/README.txt"], "text")[0].texts == ("about",)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_folder_of_image_and_text_files_asks_for_a_pattern(tmp_path, kind):
    (tmp_path / "image_00.tsv").write_text("k\taGk=\n")
    (tmp_path / "text_00.tsv").write_text("k\ta cat\n")
    with pytest.raises(
        DataError,
        match=rf"both image and text files .*image_00\.tsv, text_00\.tsv.*/{kind}\*\.tsv'",
    ):
        open_rows([tmp_path], kind)
    assert names(open_rows([tmp_path / f"{kind}*.tsv"], kind)) == [f"{kind}_00.tsv"]


@pytest.mark.parametrize("kind", ["image", "pair"])
def test_an_image_is_no_source_and_its_folder_is_named(tree, picture, kind):
    (tree / "one.JPG").write_bytes(picture(1, format="JPEG"))
    with pytest.raises(DataError, match=r"one\.JPG: is one image. Fix: name its folder"):
        open_rows([tree / "one.JPG"], kind)


def test_a_folder_whose_name_no_manifest_can_hold_is_refused(tmp_path, picture):
    folder = os.fsencode(tmp_path) + b"/nu\xff"
    os.mkdir(folder)
    with open(folder + b"/a.png", "wb") as file:
        file.write(picture(1))
    with pytest.raises(DataError, match="is not UTF-8, so no manifest can hold it. Fix: rename"):
        open_rows([os.fsdecode(folder)], "image")


@pytest.mark.parametrize("name", ["a.zip", "a.ZIP", "a.tar.gz", "a.tgz", "a.tar.zst", "a.7z"])
@pytest.mark.parametrize("kind", ["image", "text", "pair"])
def test_a_packed_archive_is_to_be_unpacked(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match="is a packed archive.*Fix: unpack it"):
        open_rows([tmp_path / name], kind)
