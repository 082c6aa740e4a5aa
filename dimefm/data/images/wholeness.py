"""Whether a decoded image is the whole picture, or filled up where its data end early.

Decoders do not always say so. JPEGs are checked in ``jpeg.py``. A PNG may end its packed data too
early in a way that is correct by itself; its rest is black. WebP, AVIF and JPEG 2000 have no
checksums, and a file that was never written to its end holds zeros there.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
from PIL import Image

from dimefm.data.images import jpeg
from dimefm.errors import BadRow

ZEROS = 512  # that no packed picture holds one after another
PART = 16  # they are damage when they are a sixteenth of the data, or more
RUN = re.compile(rb"\0{%d,}" % ZEROS)
PIECE = 1 << 16  # bytes that are unpacked at once
BLOCK = 1 << 20  # bytes that they give at once
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's pixel, by color type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
PASSES = (*ADAM7, (0, 1, 1, 2))  # first column and row, steps of columns and rows


def refuse_half(image: Image.Image, data: bytes) -> None:
    """Raise BadRow when the pixels of a loaded image are not all there in its file ``data``."""
    if image.format in ("JPEG", "MPO"):
        jpeg.refuse_damaged(data)
    elif image.format == "PNG":
        if image.info.get("interlace") or _ends_in_black(image):
            _refuse_short_png(data)
    elif image.format == "WEBP":
        _refuse_zeros(_webp_pictures(data))
    elif image.format == "JPEG2000":
        _refuse_zeros(data)
    elif image.format == "AVIF":
        _refuse_zeros(data[-(len(data) // PART + ZEROS) :])


def _ends_in_black(image: Image.Image) -> bool:
    """Tell whether one of the last two rows is zero throughout."""
    width, height = image.size
    for row in range(max(0, height - 2), height):
        pixels = np.asarray(image.crop((0, row, width, row + 1)))
        if not pixels.any():
            return True
    return False


def _refuse_short_png(data: bytes) -> None:
    """Raise BadRow when the packed data of a PNG are fewer than its pixels need."""
    header = b""
    count = 0
    unpacking = zlib.decompressobj()
    place = 8
    while place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4])
        body = data[place + 8 : end - 4]
        place = end
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            for start in range(0, len(body), PIECE):
                count += _unpacked_size(unpacking, body[start : start + PIECE])
    needed = _needed_bytes(header)
    if count < needed:
        raise BadRow(f"image is damaged: {count:,} bytes of pixels, expected {needed:,}")


def _unpacked_size(unpacking: zlib._Decompress, packed: bytes) -> int:
    """Return how many bytes a piece of a packed stream gives."""
    count = 0
    while packed and not unpacking.eof:
        count += len(unpacking.decompress(packed, BLOCK))
        packed = unpacking.unconsumed_tail
    return count


def _needed_bytes(header: bytes) -> int:
    """Return how many bytes the rows of a PNG have, with the byte before each of them."""
    width = int.from_bytes(header[:4])
    height = int.from_bytes(header[4:8])
    bits = header[8] * SAMPLES.get(header[9], 1)
    passes = PASSES if header[12] else ((0, 0, 1, 1),)
    needed = 0
    for column, row, columns, rows in passes:
        pass_width = -(-(width - column) // columns)
        pass_height = -(-(height - row) // rows)
        if pass_width > 0 and pass_height > 0:
            needed += pass_height * (1 + (pass_width * bits + 7) // 8)
    return needed


def _webp_pictures(data: bytes) -> bytes:
    """Return the packed pictures of a WebP, without its metadata."""
    pictures = []
    place = 12
    while place + 8 <= len(data):
        kind = data[place : place + 4]
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            pictures.append(data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    return b"".join(pictures)


def _refuse_zeros(packed: bytes) -> None:
    """Raise BadRow for packed data with a long run of zeros."""
    for run in RUN.finditer(packed):
        zeros = run.end() - run.start()
        if zeros * PART >= len(packed):
            raise BadRow(f"image is damaged: its data hold {zeros:,} zero bytes in a row")
