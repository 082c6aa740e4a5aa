"""From the bytes of an image file to pixels, or to a reason why not."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dimefm.errors import BadRow

try:
    import simplejpeg
except ImportError:  # no wheel for this system: PIL reads the same pixels in more time
    simplejpeg = None

Size = tuple[int, int]  # width, height in pixels
PIXELS = 89_478_485  # PIL's own decompression-bomb limit
# of the longer to the shorter side; beyond it, resizing the shorter side would need gigabytes
RATIO = 1000
PACKED = re.compile(
    rb"dimefm packed from ([1-9]\d{0,8}) x ([1-9]\d{0,8})"
)  # the comment in a packed JPEG
# Factors that libjpeg-turbo decodes at in less time than the whole; it has no quick way for 3/8.
REDUCTIONS = (8, 4, 2)


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Give the image as PIL opens it, not yet unpacked; the bytes tell the format.

    Raises BadRow for what is no image, for one past PIL's decompression-bomb limit or a thousand
    times longer than wide, and in place of whatever else is raised inside the ``with`` block.
    """
    if not data:
        raise BadRow("image is empty (0 bytes)")
    try:
        with as_bad_row():
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > PIXELS:
                raise BadRow(
                    f"image too large: {image.width} x {image.height} pixels, the limit is"
                    f" {PIXELS:,}"
                )
            if max(image.size) > RATIO * min(image.size):
                raise BadRow(
                    f"image too narrow: {image.width} x {image.height} pixels, the limit is 1 to"
                    f" {RATIO}"
                )
            yield image
    except Image.UnidentifiedImageError as error:
        raise BadRow(f"not an image: {len(data)} bytes that begin with {data[:12]!r}") from error


@contextmanager
def as_bad_row() -> Iterator[None]:
    """Raise BadRow, which blames the image, in place of whatever is raised inside the ``with``
    block.
    """
    try:
        yield
    except (BadRow, Image.UnidentifiedImageError):  # of the second ``opened`` knows more to say
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(f"image too large: {error}") from error
    except (
        Exception
    ) as error:  # PIL raises whatever its parsers raise: struct.error, NotImplementedError, ...
        raise BadRow(f"image is damaged: {error}") from error


def decode(data: bytes) -> Image.Image:
    """Return the image as 8-bit RGB, upright as its EXIF orientation says; an animation gives its
    first frame.

    Raises BadRow for anything that is not a whole image and for what ``opened`` refuses.
    """
    with opened(data) as image:
        return upright(image)


class Photo(NamedTuple):
    """A decoded image: upright ``pixels`` uint8 [H, W, 3], and ``size``, the (width, height) that
    boxes are drawn in.

    ``size`` is that of the whole image, before it was packed or decoded at a part of its size.
    """

    pixels: np.ndarray
    size: tuple[int, int]


Least = tuple[float, float]  # how many pixels of its width and height an image must keep
Need = Callable[[int, int], Least]  # of an image's width and height
ALL = (float("inf"), float("inf"))
WHOLE = (0, 0)  # the size to decode at that means an image's own


def photo_of(data: bytes, need: Need | None = None) -> Photo:
    """Return the image with the pixels of ``decode(data)``; with ``need``, perhaps at a half, a
    quarter or an eighth of its size, if the pixels that the need asks for are left.

    JPEGs take libjpeg-turbo's straight way where it can be taken: gray and colour JPEGs that lie
    upright and draw no complaint from libjpeg, not even a warning; PIL has the last word on all
    others. Both build on libjpeg-turbo and give the same pixels where its versions agree, as in the
    wheels of Pillow and simplejpeg. Raises BadRow as ``decode`` does.
    """
    return photos_of(data, lambda *size: [ALL if need is None else need(*size)])[0]


def photos_of(data: bytes, needs: Callable[[int, int], Sequence[Least]]) -> list[Photo]:
    """Return what :func:`photo_of` does for each of several needs; those that are met at one size
    share their pixels.
    """
    with opened(data) as image:
        size, decoded = original_size(image), dict[Size, np.ndarray]()
        quick = simplejpeg is not None and plain(image)
        sizes = [_reduced(image.size, least) if quick else WHOLE for least in needs(*size)]
        for at in sizes:
            if at not in decoded:
                found = _turbo(data, at) if quick else None
                decoded[at] = np.array(upright(image)) if found is None else found
        return [Photo(decoded[at], size) for at in sizes]


def jpeg_of(pixels: np.ndarray, quality: int, size: tuple[int, int]) -> bytes:
    """Return pixels uint8 [H, W, 3] as a JPEG (4:2:0); a comment in it tells the ``size`` that
    boxes are drawn in.
    """
    pixels = np.ascontiguousarray(pixels)
    if simplejpeg is None:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        found = file.getvalue()
    else:
        found = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420", fastdct=False)
    if size == pixels.shape[1::-1]:
        return found
    comment = b"dimefm packed from %d x %d" % size
    head = (
        4 + int.from_bytes(found[4:6]) if found[2:4] == b"\xff\xe0" else 2
    )  # JFIF wants its own segment first
    return found[:head] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + found[head:]


def original_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an opened image when it is upright; of a packed one, those before
    it was packed.
    """
    comment = image.info.get("comment")
    found = PACKED.fullmatch(comment) if isinstance(comment, bytes) else None
    if found:
        return int(found[1]), int(found[2])
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def plain(image: Image.Image) -> bool:
    """Say whether an opened image is a gray or colour JPEG that lies upright."""
    straight = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
    return straight and image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _reduced(size: Size, least: Least) -> Size:
    """Return the smallest size that a JPEG of ``size`` is quickly decoded at with as many pixels as
    it must keep.
    """
    reduced = ((-(-size[0] // factor), -(-size[1] // factor)) for factor in REDUCTIONS)
    return next(
        (found for found in reduced if found[0] >= least[0] and found[1] >= least[1]), WHOLE
    )


def _turbo(data: bytes, at: Size) -> np.ndarray | None:
    """Return the pixels of a plain JPEG as libjpeg-turbo reads them at that size, or None where it
    cannot.
    """
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=at[1], min_width=at[0], strict=True)
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
