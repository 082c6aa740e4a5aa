"""From the bytes of an image file to pixels, or to a reason why not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dimefm.errors import BadRow

try:
    import simplejpeg
except ImportError:  # no wheel for this system: PIL reads the same pixels in more time
    simplejpeg = None

PIXELS = 89_478_485  # PIL's own decompression-bomb limit
RATIO = 1000  # of the longer to the shorter side; beyond it, resizing the shorter side would need gigabytes


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Give the image as PIL opens it, not yet unpacked; the bytes tell the format.

    Raises BadRow for what is no image, for one past PIL's decompression-bomb limit or a thousand times longer than wide,
    and in place of whatever else is raised inside the ``with`` block.
    """
    if not data:
        raise BadRow("image is empty (0 bytes)")
    try:
        with blamed():
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > PIXELS:
                raise BadRow(f"image too large: {image.width} x {image.height} pixels, the limit is {PIXELS:,}")
            if max(image.size) > RATIO * min(image.size):
                raise BadRow(f"image too narrow: {image.width} x {image.height} pixels, the limit is 1 to {RATIO}")
            yield image
    except Image.UnidentifiedImageError as error:
        raise BadRow(f"not an image: {len(data)} bytes that begin with {data[:12]!r}") from error


@contextmanager
def blamed() -> Iterator[None]:
    """Raise BadRow, which blames the image, in place of whatever is raised inside the ``with`` block."""
    try:
        yield
    except (BadRow, Image.UnidentifiedImageError):  # of the second ``opened`` knows more to say
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(f"image too large: {error}") from error
    except Exception as error:  # PIL raises whatever its parsers raise: struct.error, NotImplementedError, ...
        raise BadRow(f"image is damaged: {error}") from error


def decode(data: bytes) -> Image.Image:
    """Return the image as 8-bit RGB, upright as its EXIF orientation says; an animation gives its first frame.

    Raises BadRow for anything that is not a whole image and for what ``opened`` refuses.
    """
    with opened(data) as image:
        return upright(image)


def pixels_of(data: bytes) -> np.ndarray:
    """Return the pixels of ``decode(data)``, uint8 [H, W, 3]; JPEGs take libjpeg-turbo's straight way where it can be taken.

    That way is for gray and colour JPEGs that lie upright and draw no complaint from libjpeg, not even a warning; PIL
    has the last word on all others. Both build on libjpeg-turbo and give the same pixels where its versions agree, as in
    the wheels of Pillow and simplejpeg. Raises BadRow as ``decode`` does.
    """
    with opened(data) as image:
        found = _turbo(data, image)
        return np.array(upright(image)) if found is None else found


def _turbo(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Return the pixels as libjpeg-turbo reads them, or None for an image that it must not or cannot read."""
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:  # damaged, or what it does not know
        return None


def upright(image: Image.Image) -> Image.Image:
    """Return the opened image unpacked, turned as its EXIF orientation says, in 8-bit RGB."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
