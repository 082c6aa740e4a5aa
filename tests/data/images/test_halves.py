"""Half a picture is never a picture, whatever closes its file; an odd file with all its pixels is
one.
"""

import io
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dimefm.data.images import decode as decoding
from dimefm.data.images import jpeg
from dimefm.data.images.decode import decode, photo_of
from dimefm.errors import BadRow
from dimefm.models.open_clip import default_preprocess
from dimefm.models.preprocess import decoder

KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "turned": {"orientation": 6},
}
END = b"\xff\xd9"
READERS = {
    "turbo": photo_of,
    "decode": decode,
    "pil": decoder("pil", default_preprocess(32)),
}


def coarse(size=(128, 112), seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (14, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def jpeg_of(kind):
    options = dict(KINDS[kind])
    image = coarse().convert(options.pop("mode", "RGB"))
    exif = Image.Exif()
    if "orientation" in options:
        exif[0x0112] = options.pop("orientation")
    return encoded(image, "JPEG", quality=92, exif=exif, **options)


def places(data, second):
    """Return where the markers with one of these second bytes are."""
    pairs = zip(data, data[1:], strict=False)
    return [place for place, pair in enumerate(pairs) if pair[0] == 0xFF and pair[1] in second]


@pytest.fixture(params=["libjpeg-turbo", "PIL alone"])
def with_and_without_turbo(request, monkeypatch):
    if request.param == "PIL alone":
        monkeypatch.setattr(decoding, "simplejpeg", None)
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    return request.param


def refused(data):
    for read in READERS.values():
        with pytest.raises(BadRow, match="image is|not an image"):
            read(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_a_jpeg_that_is_cut_and_closed_is_refused(with_and_without_turbo, kind, share):
    data = jpeg_of(kind)
    start = places(data, [0xDA])[0]
    cut = start + int(share * (len(data) - start))
    refused(data[:cut] + END)
    refused(data[:cut] + END + b"junk" * 9)
    refused(data[:cut])


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_whose_rest_was_never_written_is_refused(kind):
    data = jpeg_of(kind)
    half = len(data) * 2 // 3
    refused(data[:half] + b"\0" * (len(data) - half - 2) + END)


@pytest.mark.parametrize("scan", range(1, 10))
def test_a_progressive_jpeg_that_lacks_scans_is_refused(with_and_without_turbo, scan):
    data = jpeg_of("progressive")
    scans = places(data, [0xDA])
    assert len(scans) == 10
    tables = data.rfind(b"\xff\xc4", 0, scans[scan])  # the tables that go before the scan
    cut = tables if tables > scans[scan - 1] else scans[scan]
    refused(data[:cut] + END)


def test_a_jpeg_that_lacks_a_component_is_refused():
    """Three scans of one component each; the last one is missing."""
    data = jpeg_of("4:4:4")
    frame = places(data, [0xC0])[0]
    scan = places(data, [0xDA])[0]
    gray = jpeg_of("gray")
    body = gray[places(gray, [0xDA])[0] + 10 : -2]
    parts = []
    for component in data[frame + 10 :: 3][:2]:
        parts.append(b"\xff\xda\0\x08\x01" + bytes((component, 0, 0, 63, 0)) + body)
    refused(data[:scan] + b"".join(parts) + END)


def test_lost_restart_intervals_are_refused(with_and_without_turbo):
    data = jpeg_of("restarts")
    marks = places(data, range(0xD0, 0xD8))
    refused(data[: marks[3]] + data[marks[4] :])
    refused(data[: marks[3]] + data[marks[6] :])
    refused(data[: marks[3]] + data[marks[3] + 2 :])


def odd_jpegs(kind):
    """Return JPEGs with all their pixels that are odd otherwise, by what is odd."""
    data = jpeg_of(kind)
    tables = data.index(b"\xff\xdb")
    odd = {
        "zeros before the end mark": data[:-2] + b"\0" * 5 + END,
        "a sector of padding": data[:-2] + b"\0" * 700 + END,
        "fill bytes": data[:-2] + b"\xff" * 9 + END,
        "junk behind": data + b"junk" * 9,
        "a second picture behind": data + data,
        "bytes between markers": data[:tables] + b"\0\0\0" + data[tables:],
        "a comment": data[:2] + b"\xff\xfe\0\x0ccomment..." + data[2:],
        "half a profile": data[:2] + b"\xff\xe2\0\x12ICC_PROFILE\0\x01\x09xx" + data[2:],
    }
    if b"JFIF\0" in data:
        version = data.index(b"JFIF\0") + 5
        odd["JFIF 9"] = data[:version] + b"\x09" + data[version + 1 :]
    if kind in ("4:2:0", "gray"):
        scan = bytearray(data)
        place = places(data, [0xDA])[0]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        scan[end - 3 : end] = b"\0\0\0"  # as Samsung's cameras write it
        odd["numbers of the scan"] = bytes(scan)
    return odd


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "gray", "restarts", "cmyk"])
def test_an_odd_jpeg_with_all_its_pixels_is_a_picture(with_and_without_turbo, kind):
    expected = np.asarray(decode(jpeg_of(kind))).astype(int)
    for oddity, data in odd_jpegs(kind).items():
        for read in (decode, lambda data: photo_of(data).pixels):
            assert abs(np.asarray(read(data)) - expected).mean() < 3, oddity
        assert READERS["pil"](data).shape == (3, 32, 32)


def test_no_real_photo_is_lost(shared_data):
    for name in ("captions/fsac/test", "classification/caltech101/test"):
        for data in pq.read_table(shared_data / f"{name}.parquet")["image"].to_pylist()[::7]:
            decode(data)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(raw, width, height, depth, color, interlaced=0):
    """Return a PNG whose rows, with their filter bytes, are ``raw``."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(96))) if color == 3 else b""
    body = palette + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


PNGS = [(8, 2, 3), (8, 6, 4), (16, 0, 2), (8, 3, 1), (16, 2, 6), (8, 4, 2)]


@pytest.mark.parametrize(("depth", "color", "size"), PNGS)
def test_a_png_whose_packed_data_end_early_is_refused(depth, color, size):
    row = b"\0" + b"\x11" * (20 * size)
    whole = row * 30
    assert decode(png(whole, 20, 30, depth, color)).size == (20, 30)
    for rows in (1, 15, 29):
        refused(png(row * rows, 20, 30, depth, color))


@pytest.mark.parametrize("size", [(20, 30), (8, 8), (3, 2), (1, 1), (5, 1)])
def test_an_interlaced_png_whose_packed_data_end_early_is_refused(size):
    width, height = size
    rows = []
    for x, y, columns, lines in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        pass_width = len(range(x, width, columns))
        pass_height = len(range(y, height, lines)) if pass_width else 0
        rows += [b"\0" + b"\x11" * pass_width] * pass_height
    assert decode(png(b"".join(rows), width, height, 8, 0, 1)).getextrema()[0] == (17, 17)
    if len(rows) > 1:
        refused(png(b"".join(rows[:-1]), width, height, 8, 0, 1))
        refused(png(b"".join(rows[: len(rows) // 2]), width, height, 8, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "I;16"])
def test_a_png_that_is_black_is_a_picture(mode):
    data = encoded(Image.new(mode, (30, 20)), "PNG")
    assert decode(data).getextrema() == ((0, 0),) * 3


def written_in_part(format):
    """Yield files of which only a part was written: cut, or with zeros in place of the rest."""
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    noise = np.random.default_rng(0).integers(0, 256, (112, 128, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format, **options)
    for share in (0.3, 0.6, 0.9):
        cut = int(share * len(data))
        yield data[:cut]
        if format not in ("BMP", "PPM", "ICO"):  # zeros are black pixels there
            yield data[:cut] + b"\0" * (len(data) - cut)
    if format == "JPEG2000":
        yield data[: len(data) // 2] + END


@pytest.mark.parametrize(
    "format", ["PNG", "GIF", "WEBP", "TIFF", "JPEG2000", "AVIF", "BMP", "PPM", "ICO"]
)
def test_a_file_that_was_written_in_part_is_refused(format):
    for data in written_in_part(format):
        refused(data)


def test_a_webp_of_one_color_and_metadata_of_zeros_are_no_damage():
    for image in (Image.new("RGB", (500, 400)), coarse()):
        for lossless in (True, False):
            data = encoded(image, "WEBP", lossless=lossless, exif=b"Exif\0\0" + b"\0" * 4000)
            assert decode(data).size == image.size


def deep(values, mode):
    return encoded(Image.fromarray(values), "TIFF" if mode != "I;16" else "PNG")


GRADIENT = np.linspace(0, 255, 12 * 16).reshape(12, 16).astype(np.uint8)


@pytest.mark.parametrize("top", [1.0, 255.0, 5.0, 65535.0, 1e30, 1e-5])
@pytest.mark.parametrize("name", READERS)
def test_floating_point_pixels_are_scaled_by_their_range(name, top):
    data = deep((GRADIENT / 255 * top).astype(np.float32), "F")
    assert_same_gray(name, data)


@pytest.mark.parametrize(
    ("dtype", "top"),
    [(np.uint16, 65535), (np.uint16, 4095), (np.uint16, 255), (np.int32, 65535), (np.int32, 255)]
    + [(np.int32, 2**31 - 1), (np.int32, 1_000_000), (np.int32, 4095)],
)
@pytest.mark.parametrize("name", READERS)
def test_whole_numbers_of_more_than_8_bits_are_scaled_by_their_range(name, dtype, top):
    values = np.rint(GRADIENT.astype(np.float64) / 255 * top).astype(dtype)
    assert_same_gray(name, deep(values, "I;16" if dtype == np.uint16 else "I"))


def assert_same_gray(name, data):
    """The picture is the gradient's, by this reader."""
    if name == "pil":
        expected = READERS[name](encoded(Image.fromarray(GRADIENT), "PNG"))
        assert abs(READERS[name](data) - expected).max() < 0.05
        return
    found = READERS[name](data)
    pixels = np.asarray(found if name == "decode" else found.pixels).astype(int)
    assert abs(pixels - GRADIENT[..., None]).max() <= 1


def test_values_that_are_no_numbers_do_not_hide_the_others():
    values = GRADIENT.astype(np.float32) - 100
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    pixels = np.asarray(decode(deep(values, "F")))[..., 0].astype(int)
    assert pixels[0, :3].tolist() == [0, 255, 0]
    assert abs(pixels[1:] - GRADIENT[1:]).max() <= 4
    nothing = np.full((12, 16), np.nan, np.float32)
    assert decode(deep(nothing, "F")).getextrema() == ((0, 0),) * 3
