"""No program runs on the bytes of an image: only formats of pixels are opened, by whatever way they
come in.
"""

import base64
import io
import json
import struct
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from dimefm.data import open_rows
from dimefm.data.images.decode import decode, photo_of
from dimefm.data.images.formats import FORMATS
from dimefm.data.packed.pack import Settings as Packing
from dimefm.data.packed.pack import pack
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.zero_shot import evaluate
from dimefm.models.model import Model
from dimefm.recipe import read
from dimefm.train.inputs.student_views import StudentTransform
from tests.evaluate.datasets import tar, write
from tests.extract.conftest import assert_adds_up, keys_of, quarantine, run

PROGRAMS = ("gs", "gswin32c", "djpeg", "ppmquant", "convert", "magick", "rsvg-convert", "display")
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"
    b"(%pipe%touch canary) (w) file closefile\nshowpage\n%%EOF\n"
)


def dos_eps():
    """Return PostScript inside the binary header that Windows programs write."""
    return struct.pack("<IIIIIIIH", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + b"\0\0" + EPS


def placeable_wmf():
    """Return a Windows metafile of 100 x 100."""
    head = struct.pack("<IHhhhhHI", 0x9AC6CDD7, 0, 0, 0, 100, 100, 100, 0)
    return head + struct.pack("<H", 0) + b"\x01\0\x09\0" + b"\0" * 32


def emf():
    """Return an enhanced metafile of 100 x 100."""
    body = struct.pack("<II4i4i", 1, 108, 0, 0, 100, 100, 0, 0, 1000, 1000)
    return body + b" EMF" + b"\0" * 80


def iptc(inside):
    """Return an IPTC record that holds another image, which PIL opens whatever it is."""

    def entry(record, dataset, data):
        return struct.pack(">BBBH", 0x1C, record, dataset, len(data)) + data

    fields = [(3, 20, b"\0d"), (3, 30, b"\0d"), (3, 60, b"\1\0"), (3, 65, b"\0"), (3, 120, b"\1")]
    return b"".join(entry(*field) for field in fields) + entry(8, 10, inside)


HOSTILE = {
    "eps": EPS,
    "eps-dos": dos_eps(),
    "eps-behind-blanks": b"\n" + EPS,
    "ps": EPS.replace(b" EPSF-3.0", b""),
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n" + EPS,
    "svg": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "wmf": placeable_wmf(),
    "emf": emf(),
    "ole": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600,
    "iptc": iptc(EPS),
    "mpeg": b"\0\0\1\xb3" + b"\0" * 40,
    "xpm": b"/* XPM */\nstatic char * a[] = {\n",
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 40,
    "grib": b"GRIB\0\0\0\1" + b"\0" * 40,
}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Put programs first in PATH that leave a file behind; return that file."""
    log = tmp_path / "a program ran"
    folder = tmp_path / "bin"
    for name in PROGRAMS:
        write(folder / name, f'#!/bin/sh\necho "$0 $*" >> "{log}"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return log


def test_the_canary_sees_what_pil_alone_would_do(canary):
    with Image.open(io.BytesIO(EPS)) as image:
        with pytest.raises((OSError, subprocess.CalledProcessError)):
            image.load()
    assert canary.exists()


def photo_files(picture):
    """Return the hostile files and one image, by name."""
    files = {f"{name}.jpg": data for name, data in HOSTILE.items()}
    return {**files, "zz.jpg": picture(1, (32, 24), "JPEG")}


def write_folder(root, files):
    for name, data in files.items():
        write(root / "photos" / name, data)
    return root / "photos"


def write_tar(root, files):
    tar(root / "photos.tar", files)
    return root / "photos.tar"


def write_parquet(root, files):
    columns = {"key": list(files), "image": list(files.values())}
    pq.write_table(pa.table(columns), root / "photos.parquet")
    return root / "photos.parquet"


def write_structs(root, files):
    """Hugging Face's form: bytes and a path."""
    cells = [{"bytes": data, "path": name} for name, data in files.items()]
    pq.write_table(pa.table({"key": list(files), "image": cells}), root / "photos.parquet")
    return root / "photos.parquet"


def write_tsv(root, files):
    lines = [f"{name}\t{base64.b64encode(data).decode()}\n" for name, data in files.items()]
    write(root / "photos.tsv", "".join(lines))
    return root / "photos.tsv"


def write_csv(root, files):
    write_folder(root, files)
    write(root / "photos.csv", "filepath\n" + "".join(f"photos/{name}\n" for name in files))
    return root / "photos.csv"


def write_jsonl(root, files):
    write_folder(root, files)
    lines = [json.dumps({"filepath": f"photos/{name}"}) + "\n" for name in files]
    write(root / "photos.jsonl", "".join(lines))
    return root / "photos.jsonl"


SOURCES = {
    "folder": write_folder,
    "tar": write_tar,
    "parquet": write_parquet,
    "structs": write_structs,
    "tsv": write_tsv,
    "csv": write_csv,
    "jsonl": write_jsonl,
}


@pytest.mark.parametrize("source", SOURCES)
def test_extraction_runs_no_program(canary, tiny_teacher, picture, tmp_path, source):
    path = SOURCES[source](tmp_path, photo_files(picture))
    _, cache = run(tiny_teacher, [path], "image", tmp_path / "out")
    assert len(keys_of(cache)) == 1
    assert len(quarantine(tmp_path / "out")) == len(HOSTILE)
    assert_adds_up(cache, tmp_path / "out")
    assert not canary.exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_decoder_runs_a_program(canary, tmp_path, tiny_teacher, name):
    data = HOSTILE[name]
    for read_one in (decode, photo_of):
        with pytest.raises(BadRow, match="not an image"):
            read_one(data)
    recipe = read(None, image_size=16)
    view = StudentTransform.from_recipe(recipe, None, 16)
    with pytest.raises(BadRow, match="not an image"):
        view(data, "key", 0, 0)
    write(tmp_path / "one.jpg", data)
    with pytest.raises(DataError, match="not an image"):
        Model(tiny_teacher).encode_image(tmp_path / "one.jpg")
    assert not canary.exists()


def test_packing_runs_no_program(canary, picture, tmp_path):
    rows = open_rows([write_folder(tmp_path, photo_files(picture))], "image")
    report = pack(rows, tmp_path / "packed", Packing(size=32, progress=False))
    assert report.rows - len(report.bad) == 1
    assert not canary.exists()


def test_evaluation_runs_no_program(canary, picture, tiny_teacher, tmp_path):
    folder = tmp_path / "sets/beasts"
    write(folder / "classnames.txt", "cat\ndog\n")
    for number, (name, data) in enumerate(photo_files(picture).items()):
        write(folder / "test" / ("cat", "dog")[number % 2] / name, data)
    (result,) = evaluate(tiny_teacher, tmp_path / "sets", names=["beasts"])
    assert result.samples == 1
    assert not canary.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_list_is_read(picture, name):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
    file = io.BytesIO()
    image.resize((32, 32), Image.Resampling.NEAREST).save(file, name)
    decoded = decode(file.getvalue())
    assert decoded.size == (32, 32) and decoded.mode == "RGB"
