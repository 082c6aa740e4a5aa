"""Images in cells of tables: bytes, base64, names of files, and Hugging Face's structs of these."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from dimefm.data.columns import read_file
from dimefm.errors import BadRow

CERTAIN_STARTS = ("data:image/", "/9j/4", "iVBORw0KGgo", "R0lGOD")
"""How data URLs, and JPEG, PNG and GIF in base64 begin; no name of a file does."""

POSSIBLE_STARTS = ("/9j/", "_9j_", "UklGR", "Qk", "SUkq", "TU0A", "AAAA")
"""How JPEG, URL-safe JPEG, WebP, BMP, TIFF and AVIF begin in base64."""

SHORTEST = 64  # characters of base64 that begins with certainty; fewer are the name of a file
SHORTEST_POSSIBLE = 256  # of other base64; the name of a file has fewer
DATA_URL = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)
ALPHABET = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
URL_SAFE = bytes.maketrans(b"-_", b"+/")
WHITE = b" \t\r\n"
WHAT = "its image"


def image_of(value: object, root: Path, where: str) -> bytes:
    """Return the encoded image of a cell; names of files are below ``root``.

    ``where`` is the table and the row. Raises BadRow when the cell holds no image, DataError when
    it names a file outside the root.
    """
    if isinstance(value, dict):
        value = _of_struct(value)
    if isinstance(value, list | tuple):
        value = _of_list(value)
    if isinstance(value, dict):  # of a list
        value = _of_struct(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _of_bytes(bytes(value))
    if isinstance(value, str) and value:
        if is_base64(value):
            return decode_base64(value.encode("ascii", "replace"), WHAT, strict=False)
        return read_file(root, value, where)
    raise BadRow("has no image bytes")


def _of_struct(value: dict) -> object:
    """Return what a struct holds: its bytes, else the path of its file."""
    return value.get("bytes") or value.get("path")


def _of_list(values: list | tuple) -> object:
    """Return the one image of a list, or the bytes that a list of numbers is."""
    if values and isinstance(values[0], int):
        try:
            return bytes(values)
        except (ValueError, TypeError) as error:
            raise BadRow("its image is a list of numbers that are no bytes") from error
    images = [value for value in values if value is not None]
    if len(images) > 1:
        raise BadRow(f"holds {len(images)} images, expected one a row")
    return images[0] if images else None


def _of_bytes(raw: bytes) -> bytes:
    """Return the encoded image that bytes are, those of base64 decoded."""
    starts = (*CERTAIN_STARTS, *POSSIBLE_STARTS)
    if raw.startswith(tuple(start.encode() for start in starts)):
        text = raw.decode("ascii", "replace")
        if is_base64(text):
            return decode_base64(raw, WHAT, strict=False)
    return raw


def is_base64(text: str) -> bool:
    """Tell whether a cell is an image in base64, by how it begins and by its characters."""
    if text.startswith(CERTAIN_STARTS):
        return len(text) >= SHORTEST
    if len(text) < SHORTEST_POSSIBLE or not text.startswith(POSSIBLE_STARTS):
        return False
    return ALPHABET.fullmatch(text) is not None


def decode_base64(encoded: bytes, what: str, strict: bool = True) -> bytes:
    """Return the bytes of base64, whether or not ``data:...;base64,`` is in front.

    Unless it is ``strict`` it may hold white space and be URL-safe. Raises BadRow, naming ``what``
    it is, when it is damaged.
    """
    if encoded.startswith(b"data:"):
        encoded = DATA_URL.sub(b"", encoded, count=1)
    if not strict:
        encoded = encoded.translate(URL_SAFE, WHITE)
        encoded += b"=" * (-len(encoded) % 4)
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise BadRow(f"{what} is not base64: {error}") from error
