"""Packing: small upright images that stand for their source row by row, so that features of the
source stay theirs.
"""

import base64
import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm import plugins
from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.data import open_rows
from dimefm.data.alignment import align
from dimefm.data.images.decode import decode, original_size
from dimefm.data.packed.pack import LOCK, Settings, pack, small
from dimefm.data.packed.shards import INDEX
from dimefm.data.selection import Selection, select
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import BadRow, CacheError, DataError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.datasets import plain_layouts
from dimefm.extract.extract import extract
from dimefm.extract.stages.base import Settings as Extraction
from dimefm.storage.locks import claim

QUIET = Settings(size=32, progress=False)
BAD = (2, 5)
SIZES = [(60, 48), (48, 60), (20, 90), (30, 31), (64, 64), (33, 200), (12, 10)]


def photo(number, format="PNG", **options):
    """Return an image file of its own size and two colours that depend on ``number``."""
    width, height = SIZES[number % len(SIZES)]
    image = Image.new("RGB", (width, height), (number * 11 % 256, 255 - number * 7 % 256, 40))
    image.paste((9, number * 5 % 256, 200), (0, 0, width // 2, height // 2))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def files(count=14):
    """Return image files by key; those numbered in BAD are damaged. Keys hold what names of tar
    members cannot.
    """
    return {
        f"a.b/ü {n}.x" if n % 3 else f"{n}": photo(n)[:40] if n in BAD else photo(n)
        for n in range(count)
    }


def write_table(path, rows):
    """Write a CSV or JSON lines file of keys, image files and captions, and the files beside it."""
    cells = []
    for number, (key, data) in enumerate(rows):
        place = path.with_name(f"{path.stem}-{number}.png")
        place.write_bytes(data)
        cells.append({"key": key, "filepath": place.name, "title": f"one {number}"})
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(f"{json.dumps(cell)}\n" for cell in cells)
        else:
            table = csv.DictWriter(file, list(cells[0]))
            table.writeheader()
            table.writerows(cells)


def write(kind, root):
    """Write ``files()`` as a source of a kind, in two shards where one file is a shard; return
    it.
    """
    found = list(files().items())
    if kind == "folder":
        for number, (_, data) in enumerate(found):
            path = root / "photos" / "ab"[number % 2] / f"{number}.v1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root / "photos"
    (root / kind).mkdir()
    for shard, rows in enumerate((found[:9], found[9:])):
        path = root / kind / f"part{shard}.{'csv' if kind == 'table' else kind}"
        if kind == "parquet":
            keys, images = zip(*rows, strict=True)
            labels, captions = (
                [n % 4 for n in range(len(rows))],
                [[f"one {n}", f" two\t{n}"] for n in range(len(rows))],
            )
            pq.write_table(
                pa.table({"key": keys, "image": images, "captions": captions, "label": labels}),
                path,
            )
        elif kind in ("table", "jsonl"):
            write_table(path, rows)
        elif kind == "tsv":
            lines = [
                f"{key}\t{base64.b64encode(data).decode()}\t{n}\n".encode()
                for n, (key, data) in enumerate(rows)
            ]
            path.write_bytes(b"".join(lines))
            starts = itertools.accumulate(map(len, lines[:-1]), initial=0)
            path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))
        elif kind == "tar":
            with tarfile.open(path, "w") as tar:
                for number, (_, data) in enumerate(rows):
                    for ending, body in (("png", data), ("txt", b"a thing"), ("cls", b"3")):
                        member = tarfile.TarInfo(f"{shard}{number}.{ending}")
                        member.size = len(body)
                        tar.addfile(member, io.BytesIO(body))
    if kind in ("table", "jsonl"):  # the images that they name lie beside them
        return path.parent / f"part*{path.suffix}"
    return root / kind


def pixels(rows, number):
    """Return the mean colour of a row's image, or None when it is bad."""
    try:
        return np.asarray(decode(rows[number].image)).mean((0, 1))
    except BadRow:
        return None


SOURCES = [
    name for name in plugins.names("sources") if "image" in plugins.module("sources", name).KINDS
]


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    return write(request.param, tmp_path)


def packed(source, out, **options):
    kind = "image" if source.name == "tsv" else "pair"
    report = pack(open_rows([source], kind), out, QUIET)
    return open_rows([out], options.get("kind", "image")), report


def test_a_packed_source_has_the_rows_of_the_source(source, tmp_path):
    kind = "image" if source.name == "tsv" else "pair"
    rows, (small_rows, report) = (
        open_rows([source], kind),
        packed(source, tmp_path / "packed", kind="pair"),
    )
    assert [shard.name for shard in small_rows.shards] == [shard.name for shard in rows.shards]
    assert [shard.keys() for shard in small_rows.shards] == [shard.keys() for shard in rows.shards]
    assert (report.rows, len(report.bad), report.shards) == (14, 2, len(rows.shards))
    for number in range(len(rows)):
        colour = pixels(rows, number)
        if colour is None:
            with pytest.raises(BadRow, match="image is damaged|not an image"):
                small_rows[number]
            continue
        ours, theirs = rows[number], small_rows[number]
        assert (theirs.key, theirs.texts, theirs.label) == (ours.key, ours.texts, ours.label)
        image, original = Image.open(io.BytesIO(theirs.image)), decode(ours.image)
        assert (image.format, image.mode) == ("JPEG", "RGB") and original_size(
            image
        ) == original.size
        assert min(image.size) == min(32, *original.size)
        assert np.abs(pixels(small_rows, number) - colour).max() < 6


@pytest.mark.parametrize("views", [None, ViewPolicy(3)])
def test_features_of_the_source_are_those_of_the_packed_images(
    source, views, tmp_path, tiny_teacher
):
    rows = open_rows([source])
    extract(
        tiny_teacher,
        rows,
        "image",
        tmp_path / "cache",
        Extraction(progress=False, views=views, batch_size=8),
    )
    cache, (small_rows, _) = FeatureCache(tmp_path / "cache"), packed(source, tmp_path / "packed")
    per_image = 1 if views is None else views.count
    whole, found = align(rows, cache), align(small_rows, cache)
    assert len(found) == len(whole) == 12
    keys = [key for info in cache.manifest.shards for key in cache.read(info)[0]]
    for view in range(per_image):
        raw, (cached,) = found.locate(np.arange(12), view)
        assert raw.tolist() == whole.locate(np.arange(12), view)[0].tolist()
        for row, at in zip(raw.tolist(), cached.tolist(), strict=True):
            assert keys[at] == (
                small_rows[row].key if views is None else f"{small_rows[row].key}#{view}"
            )


@pytest.mark.parametrize("source", ["folder", "parquet"], indirect=True)
@pytest.mark.parametrize(
    "selection", [Selection(split=(0.2, 0.8)), Selection(rows=(3, 12)), Selection(limit=7)]
)
def test_a_part_of_the_packed_rows_matches_features_of_that_part(
    source, selection, tmp_path, tiny_teacher
):
    rows = select(open_rows([source]), selection)
    extract(tiny_teacher, rows, "image", tmp_path / "cache", Extraction(progress=False))
    cache = FeatureCache(tmp_path / "cache")
    of_all, _ = packed(source, tmp_path / "all")
    pack(rows, tmp_path / "part", QUIET)
    for found in (select(of_all, selection), open_rows([tmp_path / "part"])):
        aligned = align(found, cache)
        assert len(aligned) == len(align(rows, cache)) > 0
        assert [found[int(row)].key for row in aligned.locate(np.arange(len(aligned)))[0]] == [
            key for info in cache.manifest.shards for key in cache.read(info)[0]
        ]
    with pytest.raises(CacheError, match="rows, but the features|holds"):
        align(of_all, cache)


def test_a_row_that_only_the_pack_lacks_is_left_out_with_its_reason(tmp_path, tiny_teacher):
    source = write("tsv", tmp_path)
    extract(
        tiny_teacher, open_rows([source]), "image", tmp_path / "cache", Extraction(progress=False)
    )
    small_rows, _ = packed(source, tmp_path / "packed")
    whole = (source / "part0.tsv").read_text()
    (source / "part0.tsv").write_text(whole.replace(whole.split("\t")[1][:8], "AAAAAAAA", 1))
    with pytest.raises(CacheError, match="has changed"):
        align(open_rows([source]), FeatureCache(tmp_path / "cache"))
    changed, report = packed(source, tmp_path / "again")
    assert [bad["row"] for bad in report.bad] == [0, *BAD]
    with pytest.raises(BadRow, match="not an image"):
        changed[0]
    with pytest.raises(CacheError, match="its content has digest"):
        align(changed, FeatureCache(tmp_path / "cache"))
    assert len(align(small_rows, FeatureCache(tmp_path / "cache"))) == 12


def test_features_of_packed_images_are_not_those_of_the_source(tmp_path, tiny_teacher):
    source = write("parquet", tmp_path)
    small_rows, _ = packed(source, tmp_path / "packed")
    extract(tiny_teacher, small_rows, "image", tmp_path / "cache", Extraction(progress=False))
    assert len(align(small_rows, FeatureCache(tmp_path / "cache"))) == 12
    with pytest.raises(CacheError, match="its content has digest"):
        align(open_rows([source]), FeatureCache(tmp_path / "cache"))


def test_packed_again_it_still_stands_for_the_first_source(tmp_path, tiny_teacher):
    source = write("folder", tmp_path)
    extract(
        tiny_teacher, open_rows([source]), "image", tmp_path / "cache", Extraction(progress=False)
    )
    once, _ = packed(source, tmp_path / "once")
    pack(once, tmp_path / "twice", Settings(size=16, progress=False))
    twice = open_rows([tmp_path / "twice"])
    assert len(align(twice, FeatureCache(tmp_path / "cache"))) == 12
    assert original_size(Image.open(io.BytesIO(twice[0].image))) == SIZES[0]


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (photo(0, "JPEG", quality=80), (40, 32)),
        (photo(2, "JPEG"), (20, 90)),
        (photo(5), (32, 194)),
        (photo(6, "GIF"), (12, 10)),
    ],
)
def test_an_image_is_made_small_and_never_large(data, size):
    image = Image.open(io.BytesIO(small(data, QUIET)))
    assert (image.size, image.format, image.mode) == (size, "JPEG", "RGB")


def test_a_small_plain_jpeg_keeps_its_bytes_and_others_are_made_plain(shared_data):
    plain = photo(3, "JPEG", quality=70)
    assert small(plain, QUIET) == plain
    progressive = photo(3, "JPEG", progressive=True)
    assert "progressive" not in Image.open(io.BytesIO(small(progressive, QUIET))).info
    turned = (shared_data / "odd_images/exif_rotate6.jpg").read_bytes()
    image = Image.open(io.BytesIO(small(turned, Settings(size=1000))))
    assert image.size == decode(turned).size and not image.getexif()
    gray = io.BytesIO()
    Image.new("L", (20, 20), 90).save(gray, "JPEG")
    assert Image.open(io.BytesIO(small(gray.getvalue(), QUIET))).mode == "RGB"


def test_finished_shards_are_kept_and_others_made_anew(tmp_path, digests):
    rows = open_rows([write("parquet", tmp_path)], "pair")
    pack(rows, tmp_path / "packed", QUIET)
    before, out = digests(tmp_path / "packed"), tmp_path / "packed"
    kept = (out / "00000.tar").stat().st_mtime_ns
    (out / "00001.tar").rename(out / "00001.tar.part")
    (out / "pack.json").unlink()
    assert pack(rows, out, QUIET).already == 1
    assert digests(out) == before and (out / "00000.tar").stat().st_mtime_ns == kept


def test_what_was_packed_otherwise_or_from_something_else_is_refused(tmp_path):
    rows = open_rows([write("parquet", tmp_path)], "pair")
    pack(rows, tmp_path / "packed", QUIET)
    for settings in (
        Settings(size=24, progress=False),
        Settings(size=32, quality=50, progress=False),
    ):
        with pytest.raises(
            DataError,
            match=(
                "was packed with --size 32 --quality 90, not .*. Fix: choose another --out, or"
                " remove"
            ),
        ):
            pack(rows, tmp_path / "packed", settings)
    other = open_rows([write("tsv", tmp_path)])
    with pytest.raises(
        DataError, match="00000.tar: was packed from part0.parquet, not from part0.tsv as it is now"
    ):
        pack(other, tmp_path / "packed", QUIET)


def test_two_processes_do_not_pack_into_one_folder(tmp_path):
    rows = open_rows([write("tsv", tmp_path)])
    with (
        claim(tmp_path / "packed" / LOCK),
        pytest.raises(DataError, match="another process packs there"),
    ):
        pack(rows, tmp_path / "packed", QUIET)


def test_a_source_without_one_image_is_refused(tmp_path):
    (tmp_path / "x.tsv").write_text("a\tAAAA\nb\tAAAA\n")
    with pytest.raises(
        DataError,
        match=(
            "none of the 2 rows has an image; the first, x.tsv row 0: .*not an image.*. Fix:"
            " correct the source"
        ),
    ):
        pack(open_rows([tmp_path / "x.tsv"]), tmp_path / "packed", QUIET)
    assert not (tmp_path / "packed/pack.json").exists()


def rewritten(path, change):
    """Write a packed shard anew with its index changed, or without the members that ``change``
    begins.
    """
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, body in members:
            if member.name == INDEX and callable(change):
                body = change(body)
            member.size = len(body)
            if callable(change) or not member.name.startswith(change):
                tar.addfile(member, io.BytesIO(body))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body[:50], "its .dimefm-pack.json cannot be read"),
        (lambda body: b"[]", "its .dimefm-pack.json cannot be read"),
        (lambda body: body.replace(b'"bad": {', b'"bad": {"99": "x", '), "do not fit each other"),
        (
            lambda body: json.dumps({**json.loads(body), "keys": ["a"]}).encode(),
            "do not fit each other",
        ),
        ("00000003.", "its member 00000003 is not there. Fix: pack the source again"),
    ],
)
def test_a_damaged_packed_shard_is_refused_in_one_line(change, message, tmp_path):
    packed(write("tsv", tmp_path), tmp_path / "packed")
    rewritten(tmp_path / "packed/00000.tar", change)
    with pytest.raises(DataError, match=message) as error:
        open_rows([tmp_path / "packed"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["more.jpg", "00000001.jpg", "00000099.json"])
def test_a_member_that_belongs_to_no_row_is_refused(name, tmp_path):
    packed(write("tsv", tmp_path), tmp_path / "packed")
    with tarfile.open(tmp_path / "packed/00000.tar", "a") as tar:
        member = tarfile.TarInfo(name)
        tar.addfile(member)
    with pytest.raises(DataError, match=r"its member [\w~]+ belongs to none of its \d+ rows. Fix:"):
        open_rows([tmp_path / "packed"])


def test_the_command_packs_what_it_says_and_lists_bad_rows(source, tmp_path):
    out = tmp_path / "packed"
    command = ["pack", str(source), "--out", str(out), "--size", "32", "--workers", "1"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert (
        "12 images in" in result.output
        and "2 bad rows" in result.output
        and "bad row: " in result.output
    )
    listed = json.loads((out / "pack.json").read_text())
    assert (listed["rows"], len(listed["bad"]), listed["size"], listed["quality"]) == (
        14,
        2,
        32,
        90,
    )
    rows = open_rows([source])
    keys = [key for shard in rows.shards for key in shard.keys()]
    assert {bad["key"] for bad in listed["bad"]} == {
        keys[row] for row in range(14) if pixels(rows, row) is None
    }
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0 and "there already" in again.output


def test_tsvs_beside_sources_with_sentences_are_refused(tmp_path):
    sources = [str(write(kind, tmp_path)) for kind in ("tsv", "parquet")]
    result = CliRunner().invoke(main, ["pack", *sources, "--out", str(tmp_path / "packed")])
    assert result.exit_code == 1
    assert (
        "not pairs" in result.output and "pack them apart from the other sources" in result.output
    )


def test_packed_images_are_not_for_evaluation(tmp_path):
    packed(write("tar", tmp_path), tmp_path / "data/test")
    with pytest.raises(
        DataError,
        match="was packed for training. Fix: evaluate on the images that it was packed from",
    ):
        plain_layouts.read_tar(tmp_path / "data", [tmp_path / "data/test/00000.tar"], load("mnist"))


@pytest.mark.slow
def test_a_killed_packing_goes_on_and_ends_in_the_same_bytes(tmp_path, digests):
    source = write("parquet", tmp_path)
    for number in range(2, 40):
        (source / f"part{number}.parquet").write_bytes((source / "part0.parquet").read_bytes())
    command = [
        sys.executable,
        "-m",
        "dimefm",
        "pack",
        str(source),
        "--out",
        str(tmp_path / "killed"),
        "--size",
        "32",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed/00003.tar").exists():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rows = open_rows([source], "pair")
    assert pack(rows, tmp_path / "killed", QUIET).shards == 40
    pack(rows, tmp_path / "whole", QUIET)
    for path in (tmp_path / "killed").glob("*.part"):
        path.unlink()
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
