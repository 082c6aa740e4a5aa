"""Inputs that a user may download: bombs, endless things, and files damaged inside.

Each function writes one input into an empty folder and returns the words of the command that meets
it. None of them is large on disk.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TEACHER = "ResNet-mini-64/random:0"
DEEP = 100_000
DIGITS = 10_000

Maker = Callable[[Path], list]
INPUTS: dict[str, Maker] = {}


def wild(maker: Maker) -> Maker:
    """Add a maker to the inputs, under its name."""
    INPUTS[maker.__name__] = maker
    return maker


def extract(flag: str, source: object, *words: object) -> list:
    """Return the words of an extraction of ``source``."""
    return ["extract-features", "--teacher", TEACHER, flag, source, "--out", "cache", *words]


def photo(number: int = 0) -> bytes:
    """Return a small JPEG."""
    file = io.BytesIO()
    Image.new("RGB", (24, 20), (30 * number % 256, 90, 160)).save(file, "JPEG")
    return file.getvalue()


def photos(folder: Path, count: int = 3) -> Path:
    """Write a few good photos into ``folder/photos``."""
    place = folder / "photos"
    place.mkdir()
    for number in range(count):
        (place / f"{number}.jpg").write_bytes(photo(number))
    return place


def png(width: int, height: int, depth: int, kind: int, data: bytes, *extra: bytes) -> bytes:
    """Return a PNG of these header fields and compressed data, with further chunks before them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def zeros_compressed(count: int) -> bytes:
    """Return ``count`` zero bytes as a zlib stream, made in pieces."""
    compressor = zlib.compressobj(9)
    block = bytes(1 << 24)
    parts = []
    for start in range(0, count, len(block)):
        parts.append(compressor.compress(block[: min(len(block), count - start)]))
    parts.append(compressor.flush())
    return b"".join(parts)


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar of these members."""
    with tarfile.open(path, "w") as file:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def nested(depth: int) -> str:
    """Return JSON that is nested ``depth`` deep."""
    return "[" * depth + "]" * depth


# Images


@wild
def png_bomb_of_16_bits(folder):
    side = 12_000
    data = zeros_compressed(side * (side * 6 + 1))
    (photos(folder) / "bomb.png").write_bytes(png(side, side, 16, 2, data))
    return extract("--images", "photos")


@wild
def png_bomb_of_rgba(folder):
    side = 13_000
    data = zeros_compressed(side * (side * 4 + 1))
    (photos(folder) / "bomb.png").write_bytes(png(side, side, 8, 6, data))
    return extract("--images", "photos")


@wild
def png_text_bomb(folder):
    text = b"note\0\0" + zeros_compressed(1 << 30)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = zlib.compress(bytes(24 * (24 * 3 + 1)))
    (photos(folder) / "text.png").write_bytes(png(24, 24, 8, 2, data, chunk))
    return extract("--images", "photos")


@wild
def jpeg_of_thousands_of_scans(folder):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=True, quality=20)
    data = file.getvalue()
    last_scan = data.rindex(b"\xff\xda")
    scan = data[last_scan:-2]
    short = scan[:64]
    (photos(folder) / "scans.jpg").write_bytes(data[:-2] + short * 5_000 + b"\xff\xd9")
    return extract("--images", "photos")


@wild
def gif_of_many_frames(folder):
    frames = [Image.new("P", (4000, 4000), number % 256) for number in range(30)]
    frames[0].save(photos(folder) / "many.gif", save_all=True, append_images=frames[1:])
    return extract("--images", "photos")


@wild
def postscript_called_jpeg(folder):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"
    (photos(folder) / "program.jpg").write_bytes(program)
    return extract("--images", "photos")


@wild
def xmp_that_is_not_utf8(folder):
    image = Image.new("RGB", (24, 20))
    image.save(photos(folder) / "xmp.jpg", xmp=b"\xff\xfe<x:xmpmeta caf\xe9>")
    return extract("--images", "photos")


@wild
def fifo_among_photos(folder):
    os.mkfifo(photos(folder) / "pipe.jpg")
    return extract("--images", "photos")


@wild
def fifo_as_source(folder):
    os.mkfifo(folder / "pipe.txt")
    return extract("--texts", "pipe.txt")


@wild
def device_as_source(folder):
    return extract("--texts", "/dev/zero", "--input-format", "text")


@wild
def link_to_a_device(folder):
    (folder / "texts.txt").symlink_to("/dev/zero")
    return extract("--texts", "texts.txt")


# Texts and tables


@wild
def gzip_bomb(folder):
    member = gzip.compress(b"a sentence\n" + bytes(64 << 20))
    (folder / "bomb.txt.gz").write_bytes(member * 64)
    return extract("--texts", "bomb.txt.gz")


@wild
def gzip_bomb_of_json_lines(folder):
    member = gzip.compress(bytes(64 << 20))
    (folder / "bomb.jsonl.gz").write_bytes(member * 64)
    return extract("--texts", "bomb.jsonl.gz")


@wild
def endless_line(folder):
    with (folder / "endless.txt").open("wb") as file:
        file.write(b"a sentence\n")
        file.truncate(3 << 30)
    return extract("--texts", "endless.txt")


@wild
def endless_line_of_letters(folder):
    block = b"letters " * (1 << 21)
    with (folder / "endless.txt").open("wb") as file:
        file.write(b"a sentence\n")
        for _ in range(140):
            file.write(block)
    return extract("--texts", "endless.txt")


@wild
def endless_line_of_a_table(folder):
    with (folder / "endless.csv").open("wb") as file:
        file.write(b"filepath,title\na.jpg,")
        file.truncate(3 << 30)
    return extract("--texts", "endless.csv")


@wild
def endless_line_of_json(folder):
    with (folder / "endless.jsonl").open("wb") as file:
        file.write(b'{"caption": "a cat"}\n{"caption": "')
        file.truncate(3 << 30)
    return extract("--texts", "endless.jsonl")


@wild
def word_of_20_000_letters(folder):
    draw = np.random.default_rng(0)
    letters = draw.choice(list("abcdefghijklmnopqrstuvwxyz"), 20_000)
    (folder / "word.txt").write_text("a cat\n" + "".join(letters) + "\n")
    return extract("--texts", "word.txt")


@wild
def nested_json_lines(folder):
    (folder / "deep.jsonl").write_text('{"caption": "a cat"}\n' + nested(DEEP) + "\n")
    return extract("--texts", "deep.jsonl")


@wild
def number_of_many_digits_in_json_lines(folder):
    number = "7" * DIGITS
    (folder / "digits.jsonl").write_text(f'{{"caption": "a cat", "id": {number}}}\n')
    return extract("--texts", "digits.jsonl")


@wild
def nested_json_in_a_tsv(folder):
    (folder / "deep.tsv").write_text(f'a\t{nested(DEEP)}\nb\t["a cat"]\n')
    return extract("--texts", "deep.tsv")


@wild
def nested_json_in_a_tar(folder):
    members = [("a.jpg", photo()), ("a.json", nested(DEEP).encode()), ("b.jpg", photo(1))]
    tar(folder / "deep.tar", members)
    return extract("--images", "deep.tar", "--texts", "deep.tar")


@wild
def label_of_5_000_digits_in_a_tar(folder):
    tar(folder / "label.tar", [("a.jpg", photo()), ("a.cls", b"9" * 5_000)])
    return extract("--images", "label.tar")


@wild
def tar_with_a_huge_pax_header(folder):
    with tarfile.open(folder / "pax.tar", "w", format=tarfile.PAX_FORMAT) as file:
        entry = tarfile.TarInfo("a.jpg")
        entry.size = len(photo())
        entry.pax_headers = {f"key{number}": "x" * 40 for number in range(5_000)}
        file.addfile(entry, io.BytesIO(photo()))
    return extract("--images", "pax.tar")


@wild
def gzip_damaged_inside(folder):
    data = bytearray(gzip.compress(os.urandom(4000) + b"a cat\n" * 100))
    data[len(data) // 2] ^= 255
    data[len(data) // 2 + 1] ^= 255
    (folder / "damaged.txt.gz").write_bytes(bytes(data))
    return extract("--texts", "damaged.txt.gz")


@wild
def list_that_holds_itself(folder):
    (folder / "all.list").write_text("all.list\n")
    return extract("--texts", "all.list")


@wild
def list_that_holds_a_star(folder):
    (folder / "star.list").write_text("*\n")
    (folder / "texts.txt").write_text("a cat\n")
    return extract("--texts", "star.list")


@wild
def parquet_strings_that_are_not_utf8(folder):
    offsets = np.array([0, 5, 9], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"a catcaf\xe9")]
    strings = pa.Array.from_buffers(pa.string(), 2, buffers)
    pq.write_table(pa.table({"caption": strings}), folder / "latin.parquet")
    return extract("--texts", "latin.parquet")


@wild
def parquet_time_beyond_python(folder):
    far = pa.array([2**62, -(2**62)], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"caption": ["a cat", "a dog"], "time": far}), folder / "far.parquet")
    return extract("--texts", "far.parquet", "--key-column", "time")


@wild
def parquet_with_a_damaged_footer(folder):
    file = io.BytesIO()
    pq.write_table(pa.table({"caption": ["a cat"] * 50}), file)
    data = bytearray(file.getvalue())
    for place in range(len(data) - 200, len(data) - 8, 7):
        data[place] ^= 0x55
    (folder / "footer.parquet").write_bytes(bytes(data))
    return extract("--texts", "footer.parquet")


@wild
def table_of_base64(folder):
    import base64

    text = base64.b64encode(photo()).decode()
    (folder / "base64.csv").write_text(f"image,title\n{text},a cat\n{text[:-9]},a dog\n")
    return extract("--images", "base64.csv")
