"""From the bytes of an image file to pixels, or to the reason why there are none."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dimefm.data.images.deep import shallow
from dimefm.data.images.formats import FORMATS
from dimefm.data.images.jpeg import is_jpeg, outline, refuse_missing_scans
from dimefm.data.images.limits import budget, refuse_costly, stated_pixels
from dimefm.data.images.metadata import without_bulk
from dimefm.data.images.resize import Size
from dimefm.data.images.wholeness import refuse_half
from dimefm.data.rows import readable
from dimefm.errors import BadRow
from dimefm.storage.reading import is_row_fault, lacks_memory

try:
    import simplejpeg
except ImportError:  # no wheel for this system: PIL reads the same pixels in more time
    simplejpeg = None

PACKED = re.compile(  # the comment in a packed JPEG
    rb"dimefm packed from ([1-9]\d{0,8}) x ([1-9]\d{0,8})"
)
# Factors that libjpeg-turbo decodes at in less time than the whole; it has no quick way for 3/8.
REDUCTIONS = (8, 4, 2)
UPRIGHT = 1  # the EXIF orientation of an image that is not turned
ON_ITS_SIDE = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
JFIF = b"\xff\xe0"  # marker of a JPEG's JFIF segment
COMMENT = b"\xff\xfe"  # marker of a JPEG's comment
BLOCK = 1 << 22  # pixels that are converted at once
BYTES_PER_PIXEL = 8  # that decoding takes, about
SPARE_BYTES = 1 << 25  # and whatever the size
LONGEST_REASON = 200  # characters of another library's message

# PIL tells of odd metadata, which are no news to whoever reads a million images.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image file with PIL without decoding its pixels; the bytes tell the format.

    This is the only place that opens images: of all that PIL knows it reads ``FORMATS``. The image
    has its share of the pixels that this process may decode at the same time.

    Raises BadRow for bytes that are no image, for an image past the limits of ``limits.py``, and
    in place of any other error in the ``with`` block that is the image's fault.
    """
    if not data:
        raise BadRow("image is empty (0 bytes)")
    try:
        with as_bad_row(stated_pixels(data)):
            if is_jpeg(data):
                refuse_missing_scans(outline(data))
            image = Image.open(io.BytesIO(without_bulk(data)), formats=FORMATS)
            refuse_costly(image, len(data))
    except Image.UnidentifiedImageError as error:
        raise BadRow(f"not an image: {len(data)} bytes that begin with {data[:12]!r}") from error
    pixels = image.width * image.height
    with budget.take(pixels), as_bad_row(pixels):
        yield image


@contextmanager
def as_bad_row(pixels: int = 0) -> Iterator[None]:
    """Raise BadRow, which blames the image, in place of any error in the ``with`` block.

    An error of the machine is raised as it is. Where memory is short, decoders give all kinds of
    reasons, so MemoryError is raised unless there is enough for an image of that many ``pixels``.
    """
    try:
        yield
    except BadRow:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(f"image too large: {error}") from error
    # PIL raises whatever its parsers raise: struct.error, NotImplementedError, ...
    except Exception as error:
        if not is_row_fault(error):
            if lacks_memory(error) and not isinstance(error, MemoryError):
                raise MemoryError(str(error)) from error
            raise
        np.empty(SPARE_BYTES + BYTES_PER_PIXEL * pixels, np.uint8)  # raises MemoryError
        if isinstance(error, Image.UnidentifiedImageError):  # ``opened`` words it
            raise
        reason = readable(" ".join(str(error).split())[:LONGEST_REASON])
        raise BadRow(f"image is damaged: {reason}") from error


def decode(data: bytes) -> Image.Image:
    """Return the image as 8-bit RGB, upright as its EXIF orientation says.

    An animation gives its first frame. Raises BadRow for anything that is not a whole image and
    for what ``opened`` refuses.
    """
    with opened(data) as image:
        load(image, data)
        upright_image = upright(image)
        if upright_image.mode == "RGB":
            return upright_image
        return Image.fromarray(rgb_pixels(upright_image))


def load(image: Image.Image, data: bytes) -> None:
    """Decode the pixels of an opened image in place; raise BadRow for half a picture."""
    image.load()
    refuse_half(image, data)
    refuse_costly(image, len(data))  # an icon has the size of the image inside it only now


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
    load(image, data)
    return rgb_pixels(upright(image))


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
    """Return the EXIF orientation of an opened image; upright when its metadata are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception as error:  # whatever PIL raises on damaged metadata
        if not is_row_fault(error):
            raise
        return UPRIGHT


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
    """Return a loaded image turned as its EXIF orientation says, with at most 8 bits a channel."""
    if _orientation(image) != UPRIGHT:
        image = ImageOps.exif_transpose(image)
    return shallow(image)


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image as uint8 [H, W, 3], without its transparency.

    Large images are converted block by block: whole copies of them would take gigabytes.
    """
    width, height = image.size
    if image.mode == "RGB" and width * height <= BLOCK:
        return np.array(image)
    pixels = np.empty((height, width, 3), np.uint8)
    step = max(1, BLOCK // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        block = image.crop((0, top, width, bottom))
        if block.mode == "P" and "transparency" in block.info:
            block = block.convert("RGBA")
        pixels[top:bottom] = np.asarray(block.convert("RGB"))
    return pixels
