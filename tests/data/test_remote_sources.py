"""Sources at a URL: named, digested and read as if the same tree lay here, and refused where it
would be refused.
"""

import io
import json
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.data import Columns, open_rows
from dimefm.errors import BadRow, DataError

TEACHER = "ResNet-mini-64/random:0"


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


@pytest.fixture
def tree(tmp_path, picture):
    """Return a local folder with a source of every kind."""
    root = tmp_path / "tree"
    for name in "ab":
        tar(
            root / f"tars/train/{name}.tar",
            {
                f"{name}{i}.{e}": picture(i) if e == "png" else b"1"
                for i in (1, 2)
                for e in ("png", "cls")
            },
        )
    (root / "tars/classnames.txt").write_text("cat\ndog\n")
    for name in ("cat/1", "cat/2", "dog/inner/1"):
        (root / f"photos/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (root / f"photos/{name}.png").write_bytes(picture(len(name)))
    (root / "photos/words.md").write_text("about\n")
    (root / "texts").mkdir()
    for name in ("a.txt", "b.txt", ".hidden.txt", "README.txt"):
        (root / "texts" / name).write_text(f"one of {name}\ntwo of {name}\n")
    (root / "tsv").mkdir()
    (root / "tsv/text.tsv").write_text("k0\tzero\nk1\tone\nk2\ttwo\n")
    (root / "tsv/text.lineidx").write_text("0\n8\n15\n")
    (root / "tsv/text.linelist").write_text("0\n2\n")
    pq.write_table(pa.table({"key": ["x", "y"], "text": ["an x", "a y"]}), root / "rows.parquet")
    (root / "rows.jsonl").write_text('"quoted"\n')
    (root / "some.list").write_text("# two\ntexts/b.txt\ntsv/../texts/a.txt\n")
    return root


@pytest.fixture(params=["memory", "file"])
def store(request, tree):
    """Return (URL of a remote copy of ``tree``, its filesystem, the path in it)."""
    fs = fsspec.filesystem(request.param)
    place = "/bucket/tree" if request.param == "memory" else str(tree.parent / "far/tree")
    if request.param == "memory":
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        far = f"{place}/{path.relative_to(tree).as_posix()}"
        fs.makedirs(far.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(far, path.read_bytes())
    yield f"{request.param}://{place}", fs, place
    if request.param == "memory":
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


def described(rows):
    """Return everything that a cache records of rows, and the rows."""
    return [(s.name, len(s), s.digest(), s.keys()) for s in rows.shards], list(rows)


SOURCES = [
    ("texts/a.txt", "text"),
    ("texts", "text"),
    ("texts/*.txt", "text"),
    ("t**/?.txt", "text"),
    ("tex*", "text"),
    ("some.list", "text"),
    ("s*.list", "text"),
    ("tsv/text.tsv", "text"),
    ("rows.parquet", "text"),
    ("rows.jsonl", "text"),
    ("tars/train", "image"),
    ("tars/*/b.tar", "pair"),
    ("photos", "image"),
    ("phot*/[cd]*", "image"),
]


@pytest.mark.parametrize(("source", "kind"), SOURCES)
def test_a_source_at_a_url_is_the_source_here(tree, store, scratch, source, kind):
    url, *_ = store
    here = described(open_rows([tree / source], kind))
    assert described(open_rows([f"{url}/{source}"], kind, scratch=scratch)) == here
    assert described(open_rows([f"{url}/{source}/"], kind, scratch=scratch)) == here
    here = described(open_rows([source], kind, dataroot=tree))
    assert described(open_rows([source], kind, dataroot=url, scratch=scratch)) == here
    assert described(open_rows([source], kind, dataroot=f"{url}/", scratch=scratch)) == here


def test_several_sources_keep_their_order_and_their_names(tree, store, scratch):
    url, *_ = store
    names = ["texts/b.txt", "rows.jsonl", "texts/a.txt"]
    here = described(open_rows([tree / name for name in names], "text"))
    assert (
        described(open_rows([f"{url}/{name}" for name in names], "text", scratch=scratch)) == here
    )


def test_a_list_here_may_name_what_is_there(tree, store, scratch, tmp_path, monkeypatch):
    url, *_ = store
    (tmp_path / "far.list").write_text(f"{url}/texts/b.txt\n{url}/rows.jsonl\n")
    (tmp_path / "near.list").write_text("texts/b.txt\nrows.jsonl\n")
    monkeypatch.chdir(tmp_path)
    near = described(open_rows(["near.list"], "text", dataroot=tree))
    assert described(open_rows(["near.list"], "text", dataroot=url, scratch=scratch)) == near
    assert described(open_rows(["far.list"], "text", dataroot=url, scratch=scratch)) == near
    if url.startswith("memory"):
        assert described(open_rows(["far.list"], "text", scratch=scratch)) == near
    else:
        with pytest.raises(DataError, match=r"far\.list: 'file://.*' leads outside"):
            open_rows(["far.list"], "text", scratch=scratch)


@pytest.mark.parametrize(
    "entry",
    [
        "../secret.txt",
        "texts/../../secret.txt",
        "/etc/passwd",
        "file:///etc/passwd",
        "memory://x/y",
    ],
)
def test_an_entry_of_a_list_stays_in_its_root(store, scratch, entry):
    url, fs, place = store
    fs.pipe_file(f"{place}/bad.list", entry.encode())
    for options in ({}, {"dataroot": url}):
        with pytest.raises(
            DataError, match=r"bad\.list: '.*' leads outside .*/tree. .* --dataroot"
        ):
            open_rows([f"{url}/bad.list"], "text", scratch=scratch, **options)
    assert not list(scratch.rglob("passwd"))


@pytest.mark.parametrize("name", ["photos/../../x.png", "../elsewhere/x.png", "photos2/x.png"])
def test_a_store_that_lists_what_is_outside_is_refused(store, scratch, monkeypatch, name):
    url, fs, place = store
    monkeypatch.setattr(
        type(fs), "find", lambda *_, **__: {f"{place}/{name}": {"type": "file", "size": 1}}
    )
    with pytest.raises(
        DataError, match=f"photos: the listing names '{place}/{name}', which leads outside"
    ):
        open_rows([f"{url}/photos"], scratch=scratch)
    assert not scratch.exists()


def test_a_user_may_name_what_lies_outside_the_root_but_not_above_the_store(store, scratch):
    url, *_ = store
    for source in ("../rows.jsonl", f"{url}/texts/../rows.jsonl"):
        rows = open_rows([source], "text", dataroot=f"{url}/photos", scratch=scratch)
        assert [shard.name for shard in rows.shards] == ["rows.jsonl"]
    with pytest.raises(DataError, match="no such file|expected a path without '..'"):
        open_rows([f"{url.partition('://')[0]}://../etc/passwd"], "text", scratch=scratch)
    assert not list(scratch.rglob("passwd"))


def test_a_folder_of_images_is_what_the_store_has_now(store, scratch, picture):
    url, fs, place = store
    rows = open_rows([f"{url}/photos"], scratch=scratch)
    assert [row.key for row in rows] == ["cat/1.png", "cat/2.png", "dog/inner/1.png"]
    assert not list(scratch.rglob("words.md"))
    fs.rm(f"{place}/photos/cat/1.png")
    fs.pipe_file(f"{place}/photos/cat/2.png", picture(77))
    fs.pipe_file(f"{place}/photos/cat/3.PNG", picture(78))
    rows = open_rows([f"{url}/photos"], scratch=scratch)
    assert [(row.key, row.label) for row in rows] == [
        ("cat/2.png", "cat"),
        ("cat/3.PNG", "cat"),
        ("dog/inner/1.png", "dog"),
    ]
    assert [rows[0].image, rows[1].image] == [picture(77), picture(78)]
    assert not list(scratch.rglob("*1.png.seal"))[1:]


def test_an_index_that_is_gone_there_is_gone_here(store, scratch):
    url, fs, place = store
    assert [row.key for row in open_rows([f"{url}/tsv"], "text", scratch=scratch)] == ["k0", "k2"]
    fs.rm(f"{place}/tsv/text.linelist")
    fs.rm(f"{place}/tsv/text.lineidx")
    assert [row.key for row in open_rows([f"{url}/tsv"], "text", scratch=scratch)] == [
        "k0",
        "k1",
        "k2",
    ]


def test_pairs_bring_their_class_names_and_images_do_not(store, scratch):
    url, fs, place = store
    open_rows([f"{url}/tars/train"], "image", scratch=scratch)
    assert not list(scratch.rglob("classnames.txt"))
    open_rows([f"{url}/tars/train"], "pair", scratch=scratch)
    (copied,) = scratch.rglob("classnames.txt")
    assert copied.read_text() == "cat\ndog\n" and copied.parent.name == "tars"
    fs.rm(f"{place}/tars/classnames.txt")
    open_rows([f"{url}/tars/train"], "pair", scratch=scratch)
    assert not list(scratch.rglob("classnames.txt"))


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        (
            "nowhere",
            "text",
            (
                r"source .*/tree/nowhere: no such file or folder, and no pattern that matches one."
                r" Fix: check --dataroot"
            ),
        ),
        ("texts/*.tar", "image", "no pattern that matches one"),
        ("none.list", "text", "no such file or folder"),
        ("tars", "image", r"tree/tars: no image files and no shards in this folder"),
        ("photos", "text", r"tree/photos: no files of sentences in this folder"),
        (
            "both",
            "text",
            (
                r"tree/both: holds both image and text files .*with a pattern, like"
                r" '.*/tree/both/text\*\.tsv'"
            ),
        ),
        (
            "stray",
            "image",
            (
                r"tree/stray: holds images and 1 shard file \(a\.csv\). Fix: pass --input-format"
                r" folder"
            ),
        ),
        ("photos/cat/1.png", "image", "is one image. Fix: name its folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_as_here(store, scratch, picture, source, kind, reason):
    url, fs, place = store
    for name in ("both/image.tsv", "both/text.tsv", "stray/a.csv", "stray/inner/1.png"):
        fs.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{place}/{name}", b"k\tv\n")
    with pytest.raises(DataError, match=reason):
        open_rows([f"{url}/{source}"], kind, scratch=scratch)


def test_the_input_format_chooses_as_here(store, scratch, picture):
    url, fs, place = store
    fs.pipe_file(f"{place}/photos/a.csv", b"filepath\ncat/1.png\n")
    assert len(open_rows([f"{url}/photos"], input_format="folder", scratch=scratch)) == 3
    assert len(open_rows([f"{url}/photos"], input_format="table", scratch=scratch)) == 1


def test_files_that_a_table_names_do_not_come_along(store, scratch):
    url, fs, place = store
    fs.pipe_file(f"{place}/table.csv", b"filepath\nphotos/cat/1.png\n")
    rows = open_rows([f"{url}/table.csv"], scratch=scratch, columns=Columns())
    with pytest.raises(BadRow, match="image file photos/cat/1.png cannot be read"):
        rows[0]


def test_names_never_depend_on_where_copies_lie(tree, store, scratch):
    url, *_ = store
    mixed = [f"{url}/texts/a.txt", tree / "rows.jsonl"]
    with pytest.raises(
        DataError,
        match=(
            "sources here and at a URL share no folder that could name them. Fix: give --dataroot"
        ),
    ):
        open_rows(mixed, "text", scratch=scratch)
    assert [s.name for s in open_rows(mixed, "text", dataroot=url, scratch=scratch).shards] == [
        "texts/a.txt",
        "rows.jsonl",
    ]


def test_a_cache_from_a_url_trains_with_a_local_copy_and_the_other_way_round(
    tree, store, scratch, tmp_path
):
    url, *_ = store
    common = ["--device", "cpu", "--scratch", scratch, "--workers", 1]

    def dimefm(*words):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, f"{result.output}{result.exception!r}"

    for name, root in (("far", url), ("near", tree)):
        given = ["--dataroot", root, "--images", "photos", "tars/train", "--texts", "texts/*.txt"]
        dimefm("extract-features", "--teacher", TEACHER, *given, "--out", tmp_path / name, *common)
    far, near = (FeatureCache(tmp_path / name / "images").manifest for name in ("far", "near"))
    assert far.fingerprint == near.fingerprint
    assert str(scratch) not in json.dumps([shard.source for shard in far.shards])
    for name, root in (("far", tree), ("near", url)):
        given = ["--dataroot", root, "--images", "photos", "tars/train", "--crops", "free"]
        caches = [
            "--image-cache",
            tmp_path / name / "images",
            "--text-cache",
            tmp_path / name / "texts",
        ]
        student = [
            "--student",
            "ResNet-mini-32",
            "--steps",
            1,
            "--batch-size",
            4,
            "--set",
            "resize=0",
        ]
        dimefm("train", *given, *caches, *student, "--out", tmp_path / f"run-{name}", *common)
    assert (tmp_path / "run-near/recipe.toml").read_text().count(url) == 1
