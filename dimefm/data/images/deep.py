"""Grays of more than 8 bits: 16-bit, 32-bit and floating-point pixels, in 8 bits.

PIL clips them, so most come out white or black. They are scaled by their range. For whole numbers
that is the least of 8, 12 and 16 bits that holds the brightest pixel; the upper 8 bits stay. For
floating point it is 0 to 1 or 0 to 255. Pixels that fit none of these, or use less than a sixteenth
of it, are scaled from their least to their greatest value. NaN becomes black, an infinity the end
of the range.
"""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

DEPTHS = (8, 12, 16)  # bits of whole numbers
TOPS = (1.0, 255.0)  # of floating point
LEAST = 16  # a range of which less than this part is used is not the one that was meant
BLOCK = 1 << 21  # pixels that are scaled at once


def is_deep(image: Image.Image) -> bool:
    """Tell whether the pixels of an image have more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def shallow(image: Image.Image) -> Image.Image:
    """Return a deep gray image in 8 bits with the same orientation; any other image as it is."""
    if not is_deep(image):
        return image
    values = np.asarray(image)
    low, scale = _low_and_scale(values)
    gray = np.empty(values.shape, np.uint8)
    for rows in _blocks(values):
        part = values[rows].astype(np.float64)
        np.nan_to_num(part, copy=False, nan=low, posinf=np.inf, neginf=-np.inf)
        part -= low
        if scale:  # an infinity times 0 is no number
            part *= scale
        if values.dtype.kind == "f":
            np.rint(part, out=part)
        gray[rows] = part.clip(0, 255)  # the fractions of whole numbers are cut
    result = Image.fromarray(gray)
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation is not None:
        result.getexif()[ExifTags.Base.Orientation] = orientation
    return result


def _blocks(values: np.ndarray) -> list[slice]:
    """Return the rows of an image [H, W] in blocks."""
    height, width = values.shape
    step = max(1, BLOCK // width)
    return [slice(top, top + step) for top in range(0, height, step)]


def _low_and_scale(values: np.ndarray) -> tuple[float, float]:
    """Return the value that becomes black, and what a step of 1 above it becomes."""
    lows: list[float] = []
    highs: list[float] = []
    for rows in _blocks(values):
        part = values[rows]
        finite = part[np.isfinite(part)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    if not lows:
        return 0.0, 0.0
    low = min(lows)
    high = max(highs)
    if values.dtype.kind == "f":
        tops = [(top, 255 / top) for top in TOPS]
    else:
        tops = [(2**bits - 1, 2.0 ** (8 - bits)) for bits in DEPTHS]
    for top, scale in tops:
        if low >= 0 and top / LEAST < high <= top:
            return 0.0, scale
    if high == low:
        return low, 0.0
    return low, 255 / (high - low)
