"""From the bytes of an image file to pixels, or to a reason why not."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from dimefm.errors import BadRow

PIXELS = 89_478_485  # PIL's own decompression-bomb limit
RATIO = 1000  # of the longer to the shorter side; beyond it, resizing the shorter side would need gigabytes
DECODER = "pil"  # recorded in manifests; orientation applied, 16-bit grays scaled, transparency dropped


def decode(data: bytes) -> Image.Image:
    """Return the image as 8-bit RGB, upright as its EXIF orientation says; an animation gives its first frame.

    Raises BadRow for anything that is not a whole image, and for images past PIL's decompression-bomb limit or a
    thousand times longer than wide.
    """
    if not data:
        raise BadRow("image is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > PIXELS:
            raise BadRow(f"image too large: {image.width} x {image.height} pixels, the limit is {PIXELS:,}")
        if max(image.size) > RATIO * min(image.size):
            raise BadRow(f"image too narrow: {image.width} x {image.height} pixels, the limit is 1 to {RATIO}")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError as error:
        raise BadRow(f"not an image: {len(data)} bytes that begin with {data[:12]!r}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(f"image too large: {error}") from error
    except BadRow:
        raise
    except Exception as error:  # PIL raises whatever its parsers raise: struct.error, NotImplementedError, ...
        raise BadRow(f"image is damaged: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
