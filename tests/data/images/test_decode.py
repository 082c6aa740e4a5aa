"""Decoding: every usual kind of image comes out upright in 8-bit RGB; anything else is a bad row,
whatever PIL thinks.
"""

import io
import json
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dimefm.data.images.decode import decode
from dimefm.data.images.limits import PIXELS, RATIO
from dimefm.errors import BadRow

GRADIENT = np.linspace(0, 255, 12 * 16).reshape(12, 16).astype(np.uint8)
COLOURS = np.stack([GRADIENT, GRADIENT[::-1], np.full_like(GRADIENT, 128)], -1)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_odd_images_are_decoded_or_refused_as_expected(shared_data):
    folder = shared_data / "odd_images"
    entries = json.loads((folder / "expect.json").read_text())
    assert len(entries) == 22
    for entry in entries:
        data = (folder / entry["file"]).read_bytes()
        if entry["expect"] == "ok":
            assert decode(data).mode == "RGB", entry
        else:
            with pytest.raises(BadRow):
                decode(data)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("la.png", "gray.jpg"),
        ("gray16.png", "cmyk.jpg"),
        ("rgba.png", "png_named.jpg"),
        ("tail_junk.jpg", "progressive.jpg"),
    ],
)
def test_the_same_photo_in_two_encodings_has_the_same_brightness(shared_data, name, same):
    def brightness(file):
        image = decode((shared_data / "odd_images" / file).read_bytes()).resize((16, 16))
        return np.asarray(image).mean(-1)

    assert abs(brightness(name) - brightness(same)).mean() < 8


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_of_the_same_brightness(mode):
    image = Image.fromarray(COLOURS)
    format = "TIFF" if mode in ("CMYK", "F", "I") else "PNG"
    if mode in ("I;16", "I"):
        wide = GRADIENT.astype(np.uint16 if mode == "I;16" else np.int32) * 257
        image = Image.fromarray(wide)
        expected = np.repeat(GRADIENT[..., None], 3, -1)
    elif mode == "F":
        image = Image.fromarray(GRADIENT.astype(np.float32))
        expected = np.repeat(GRADIENT[..., None], 3, -1)
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    found = decode(encoded(image, format))
    assert found.mode == "RGB" and found.size == (16, 12)
    assert abs(np.asarray(found).astype(int) - expected).max() <= 1


def test_palette_with_transparency_keeps_its_colours():
    image = Image.fromarray(COLOURS).quantize(16)
    assert np.array_equal(
        np.asarray(decode(encoded(image, transparency=3))), np.asarray(image.convert("RGB"))
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_the_exif_orientation_is_applied(orientation, format):
    upright = COLOURS
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    np.testing.assert_array_equal(np.asarray(decode(data)), upright)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "not an image: 43 bytes that begin with b'version http",
        ),
        (b"<!DOCTYPE html>", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"GIF89a", "image"),
        (b"RIFF\x00\x00\x00\x00WEBP", "image"),
    ],
)
def test_bytes_that_are_no_image_are_refused(data, reason):
    with pytest.raises(BadRow, match=reason):
        decode(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_half_a_file_is_never_a_picture(picture, format, share):
    data = picture(3, (64, 48), format)
    with pytest.raises(BadRow):
        decode(data[: int(len(data) * share)])


def bomb(width, height):
    """Return a PNG that states a size and holds almost no data."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (30_000, 30_000), (PIXELS + 1, 1)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(width, height):
    with pytest.raises(BadRow, match="too large"):
        decode(bomb(width, height))


@pytest.mark.parametrize("size", [(RATIO + 1, 1), (1, 80_000_000)])
def test_an_image_too_narrow_to_resize_is_refused(size):
    with pytest.raises(BadRow, match=f"too narrow: {size[0]} x {size[1]}"):
        decode(bomb(*size))


def test_a_long_but_honest_image_is_read():
    assert decode(encoded(Image.new("RGB", (1500, 20)))).size == (1500, 20)
    assert decode(encoded(Image.new("RGB", (1, 1)))).size == (1, 1)


def mutate(data, draw):
    data = bytearray(data)
    for _ in range(draw.choice([1, 2, 6])):
        place = draw.randrange(min(len(data), draw.choice([64, 300, len(data)])))
        if draw.random() < 0.8:
            data[place] = draw.randrange(256)
        else:
            del data[place : place + draw.randrange(1, 9)]
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "DDS", "ICO"])
def test_damaged_files_give_a_picture_or_a_bad_row_and_nothing_else(picture, format):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    options = {"exif": exif} if format in ("JPEG", "PNG", "WEBP") else {}
    data, draw = picture(1, (24, 20), format, **options), random.Random(format)
    bad = 0
    for _ in range(250):
        try:
            assert decode(mutate(data, draw)).mode == "RGB"
        except BadRow as error:
            assert str(error).startswith(("image", "not an image"))
            bad += 1
    assert 20 < bad


def test_damaged_exif_does_not_end_the_job(picture):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    data, draw, place = picture(1, (24, 20), "JPEG", exif=exif), random.Random(0), None
    place = data.index(b"Exif")
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(3):
            changed[place + 6 + draw.randrange(40)] = draw.randrange(256)
        try:
            decode(bytes(changed))
        except BadRow:
            pass
