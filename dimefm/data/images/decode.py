"""From the bytes of an image file to pixels, or to the reason why there are none."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dimefm.data.images.formats import FORMATS
from dimefm.data.images.resize import Size
from dimefm.errors import BadRow
from dimefm.storage.reading import is_row_fault

try:
    import simplejpeg
except ImportError:  # no wheel for this system: PIL reads the same pixels in more time
    simplejpeg = None

PIXELS = 89_478_485  # PIL's own decompression-bomb limit
# of the longer to the shorter side; beyond it, resizing the shorter side would need gigabytes
RATIO = 1000
PACKED = re.compile(  # the comment in a packed JPEG
    rb"dimefm packed from ([1-9]\d{0,8}) x ([1-9]\d{0,8})"
)
# Factors that libjpeg-turbo decodes at in less time than the whole; it has no quick way for 3/8.
REDUCTIONS = (8, 4, 2)
UPRIGHT = 1  # the EXIF orientation of an image that is not turned
ON_ITS_SIDE = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
JFIF = b"\xff\xe0"  # marker of a JPEG's JFIF segment
COMMENT = b"\xff\xfe"  # marker of a JPEG's comment


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image file with PIL without decoding its pixels; the bytes tell the format.

    This is the only place that opens images: of all that PIL knows it reads ``FORMATS``.

    Raises BadRow for bytes that are no image, for an image past PIL's decompression-bomb limit or
    a thousand times longer than wide, and in place of any other error in the ``with`` block that
    is the image's fault.
    """
    if not data:
        raise BadRow("image is empty (0 bytes)")
    try:
        with as_bad_row():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image)
            yield image
    except Image.UnidentifiedImageError as error:
        raise BadRow(f"not an image: {len(data)} bytes that begin with {data[:12]!r}") from error


def _check_size(image: Image.Image) -> None:
    """Raise BadRow for an image of too many pixels, or too narrow a one."""
    size = f"{image.width} x {image.height} pixels"
    if image.width * image.height > PIXELS:
        raise BadRow(f"image too large: {size}, the limit is {PIXELS:,}")
    if max(image.size) > RATIO * min(image.size):
        raise BadRow(f"image too narrow: {size}, the limit is 1 to {RATIO}")


@contextmanager
def as_bad_row() -> Iterator[None]:
    """Raise BadRow, which blames the image, in place of any error in the ``with`` block.

    An error of the machine, such as a lack of memory, is raised as it is.
    """
    try:
        yield
    except (BadRow, Image.UnidentifiedImageError):  # ``opened`` words the second one itself
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(f"image too large: {error}") from error
    # PIL raises whatever its parsers raise: struct.error, NotImplementedError, ...
    except Exception as error:
        if not is_row_fault(error):
            raise
        raise BadRow(f"image is damaged: {error}") from error


def decode(data: bytes) -> Image.Image:
    """Return the image as 8-bit RGB, upright as its EXIF orientation says.

    An animation gives its first frame. Raises BadRow for anything that is not a whole image and
    for what ``opened`` refuses.
    """
    with opened(data) as image:
        return upright(image)


class Photo(NamedTuple):
    """A decoded image: upright ``pixels`` uint8 [H, W, 3] and the ``size`` that boxes refer to.

    ``size`` is the (width, height) of the whole image, before it was packed or decoded at a part
    of its size.
    """

    pixels: np.ndarray
    size: Size


Least = tuple[float, float]  # how many pixels of its width and height an image must keep
Need = Callable[[int, int], Least]  # of an image's width and height
ALL = (float("inf"), float("inf"))
WHOLE = (0, 0)  # the size to decode at that means an image's own


def photo_of(data: bytes, need: Need | None = None) -> Photo:
    """Return the image with the pixels of ``decode(data)``, or fewer if ``need`` allows it.

    With ``need`` the image may be decoded at a half, a quarter or an eighth of its size, if the
    pixels that the need asks for are left.

    libjpeg-turbo decodes gray and color JPEGs that lie upright and cause no libjpeg warning; PIL
    decodes all others. Both build on libjpeg-turbo and give the same pixels where its versions
    agree, as in the wheels of Pillow and simplejpeg. Raises BadRow as ``decode`` does.
    """

    def needs(width: int, height: int) -> list[Least]:
        if need is None:
            return [ALL]
        return [need(width, height)]

    (photo,) = photos_of(data, needs)
    return photo


def photos_of(data: bytes, needs: Callable[[int, int], Sequence[Least]]) -> list[Photo]:
    """Return the photo of :func:`photo_of` for each of several needs.

    Photos that are decoded at the same size share their pixels.
    """
    with opened(data) as image:
        original = original_size(image)
        is_quick = simplejpeg is not None and plain(image)
        decoded: dict[Size, np.ndarray] = {}
        photos: list[Photo] = []
        for least in needs(*original):
            size = _reduced(image.size, least) if is_quick else WHOLE
            if size not in decoded:
                decoded[size] = _decoded(image, data, size, is_quick)
            photos.append(Photo(decoded[size], original))
        return photos


def _decoded(image: Image.Image, data: bytes, size: Size, is_quick: bool) -> np.ndarray:
    """Return the pixels of an opened image at ``size``, by libjpeg-turbo where it can, else PIL."""
    pixels = _turbo(data, size) if is_quick else None
    if pixels is not None:
        return pixels
    return np.array(upright(image))


def jpeg_of(pixels: np.ndarray, quality: int, size: Size) -> bytes:
    """Return pixels uint8 [H, W, 3] as a JPEG (4:2:0).

    A comment in it holds the ``size`` that boxes refer to, where that differs from the pixels'.
    """
    jpeg = _encoded(np.ascontiguousarray(pixels), quality)
    height, width, _ = pixels.shape
    if size == (width, height):
        return jpeg
    return _with_comment(jpeg, b"dimefm packed from %d x %d" % size)


def _encoded(pixels: np.ndarray, quality: int) -> bytes:
    """Return contiguous pixels as a JPEG."""
    if simplejpeg is not None:
        return simplejpeg.encode_jpeg(pixels, quality, "RGB", "420", fastdct=False)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _with_comment(jpeg: bytes, comment: bytes) -> bytes:
    """Return a JPEG with a comment behind its JFIF segment, which must come first."""
    head = 2  # the start marker
    if jpeg[2:4] == JFIF:
        segment = int.from_bytes(jpeg[4:6])
        head = 4 + segment
    length = (len(comment) + 2).to_bytes(2)
    return jpeg[:head] + COMMENT + length + comment + jpeg[head:]


def original_size(image: Image.Image) -> Size:
    """Return the (width, height) of an opened image when it is upright.

    For a packed image it is the size before packing.
    """
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        packed_from = PACKED.fullmatch(comment)
        if packed_from:
            width, height = packed_from.groups()
            return int(width), int(height)
    if _orientation(image) in ON_ITS_SIDE:
        return image.height, image.width
    return image.size


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image."""
    return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)


def plain(image: Image.Image) -> bool:
    """Tell whether an opened image is a gray or color JPEG that lies upright."""
    if image.format not in ("JPEG", "MPO"):
        return False
    if image.mode not in ("L", "RGB"):
        return False
    return _orientation(image) == UPRIGHT


def _reduced(size: Size, least: Least) -> Size:
    """Return the smallest size that decodes quickly and keeps the ``least`` pixels of a JPEG."""
    width, height = size
    least_width, least_height = least
    for factor in REDUCTIONS:
        reduced_width = -(-width // factor)
        reduced_height = -(-height // factor)
        if reduced_width >= least_width and reduced_height >= least_height:
            return reduced_width, reduced_height
    return WHOLE


def _turbo(data: bytes, at: Size) -> np.ndarray | None:
    """Return a plain JPEG's pixels at a size by libjpeg-turbo, None where it cannot."""
    width, height = at
    try:
        return simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=height,
            min_width=width,
            strict=True,
        )
    except ValueError:  # damaged, or of a kind that libjpeg-turbo does not know
        return None


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image with its pixels, turned as its EXIF orientation says, in 8-bit RGB."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.uint32) >> 8
        gray = gray.clip(0, 255).astype(np.uint8)
        image = Image.fromarray(gray)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
