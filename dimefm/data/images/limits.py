"""Bounds on what decoding one image may cost, checked before its pixels are decoded.

An image may take seconds and about 1.2 GB. A small file can ask for much more: a format that is
decoded in Python, tiles larger than the image, numbers of 32 bits for each color. Threads that
decode at the same time share one budget of pixels, so that the memory of all of them is bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH

from dimefm.errors import BadRow

PIXELS = 89_478_485  # PIL's own decompression-bomb limit
# of the longer to the shorter side; beyond it, resizing the shorter side would need gigabytes
RATIO = 1000
SLOW_PIXELS = 1 << 23  # of an image that is decoded in Python
SLOW_BYTES = 1 << 24  # of its file
JPEG2000_PIXELS = PIXELS // 2  # its decoder takes 16 bytes for each


def refuse_costly(image: Image.Image, size_of_file: int) -> None:
    """Raise BadRow for an opened image of too many pixels, too narrow, or too slow to decode."""
    width, height = image.size
    size = f"{width} x {height} pixels"
    limit = JPEG2000_PIXELS if image.format == "JPEG2000" else PIXELS
    if width * height > limit:
        raise BadRow(f"image too large: {size}, the limit is {limit:,}")
    if max(image.size) > RATIO * min(image.size):
        raise BadRow(f"image too narrow: {size}, the limit is 1 to {RATIO}")
    if image.format == "TIFF":
        _refuse_large_tiles(image)
    is_slow = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    if is_slow and (width * height > SLOW_PIXELS or size_of_file > SLOW_BYTES):
        raise BadRow(
            f"image too large: {size} in {size_of_file:,} bytes; the limits of this kind of"
            f" {image.format} are {SLOW_PIXELS:,} pixels and {SLOW_BYTES:,} bytes"
        )


def _refuse_large_tiles(image: Image.Image) -> None:
    """Raise BadRow for a TIFF whose tiles are much larger than an image may be."""
    sides = [image.tag_v2.get(tag, 1) for tag in (TILEWIDTH, TILELENGTH)]
    if not all(isinstance(side, int) for side in sides):
        raise BadRow("image is damaged: the size of its tiles is no number")
    if sides[0] * sides[1] > PIXELS:
        raise BadRow(f"image too large: tiles of {sides[0]} x {sides[1]} pixels")


def stated_pixels(data: bytes) -> int:
    """Return how many pixels memory is needed for when a file is opened.

    These are the pixels that a WebP states; other formats take their memory later.
    """
    kind = data[12:16]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width = 1 + (bits & 0x3FFF)
        height = 1 + (bits >> 14 & 0x3FFF)
    else:
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    return min(width * height, PIXELS)


class PixelBudget:
    """How many pixels all threads of a process may decode at the same time."""

    def __init__(self, pixels: int):
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels are free, and keep them for the ``with`` block."""
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


budget = PixelBudget(PIXELS)
"""That of this process."""
