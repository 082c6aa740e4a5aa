"""Image files without the metadata that stop or slow down a decoder.

PNGs of ordinary pixels may hold megabytes of text or color profile: programs that make images put
their settings there, and decoders refuse them as too large. GIFs may hold any number of comments.
None of it changes a pixel, so it is cut out before a file is opened. EXIF, which tells how an image
is turned, stays.
"""

from __future__ import annotations

import zlib

from dimefm.errors import BadRow

PNG = b"\x89PNG\r\n\x1a\n"
GIF = (b"GIF87a", b"GIF89a")
PROFILE = b"iCCP"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
TURNS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
"""Names of the texts that may hold an orientation."""

LARGEST_TEXT = 1 << 16  # bytes of such a text, packed and unpacked
MOST_TURNS = 16  # of such texts
MOST_CHUNKS = 1_000_000  # of a PNG, and blocks of a GIF before its first picture
EXTENSION, LOCAL_IMAGE = 0x21, 0x2C
GRAPHIC_CONTROL = 0xF9


def without_bulk(data: bytes) -> bytes:
    """Return an image file without texts, comments and color profiles that no pixel needs.

    Files of other formats, and files without any, are returned as they are. Raises BadRow for a
    file of so many parts that reading them would take minutes.
    """
    if data.startswith(PNG):
        return _png_without_bulk(data)
    if data.startswith(GIF):
        return _gif_without_bulk(data)
    return data


def _png_without_bulk(data: bytes) -> bytes:
    kept = [PNG]
    kept_until = len(PNG)
    place = kept_until
    chunks = 0
    turns = 0
    while place + 8 <= len(data):
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise BadRow(f"image is not read: a PNG of more than {MOST_CHUNKS:,} chunks")
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if end > len(data):
            break
        turns += kind in TEXTS
        is_dropped = kind == PROFILE
        if kind in TEXTS:
            is_dropped = turns > MOST_TURNS or not _may_turn(kind, data[place + 8 : end - 4])
        if is_dropped:
            kept.append(data[kept_until:place])
            kept_until = end
        place = end
    if kept_until == len(PNG):
        return data
    kept.append(data[kept_until:])
    return b"".join(kept)


def _may_turn(kind: bytes, text: bytes) -> bool:
    """Tell whether a text chunk may hold an orientation and is short."""
    if not text.startswith(TURNS) or len(text) > LARGEST_TEXT:
        return False
    packed = b""
    if kind == b"zTXt":
        packed = text[text.index(b"\0") + 2 :]
    elif kind == b"iTXt":
        name = text.index(b"\0")
        if text[name + 1 : name + 2] == b"\1":
            packed = text[name + 3 :].split(b"\0", 2)[-1]
    if not packed:
        return True
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, LARGEST_TEXT)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


def _gif_without_bulk(data: bytes) -> bytes:
    """Return a GIF whose first picture follows its head, with the control block of it."""
    if len(data) < 13:
        return data
    head = 13
    if data[10] & 0x80:  # it has a table of colors
        head += 3 << ((data[10] & 7) + 1)
    place = head
    control = b""
    extensions = 0
    blocks = 0
    while data[place : place + 1] == bytes((EXTENSION,)):
        start = place
        extensions += 1
        place += 2
        while place < len(data) and data[place]:
            place += 1 + data[place]
            blocks += 1
            if blocks + extensions > MOST_CHUNKS:
                raise BadRow(f"image is not read: a GIF of more than {MOST_CHUNKS:,} blocks")
        place += 1
        if data[start + 1 : start + 2] == bytes((GRAPHIC_CONTROL,)):
            control = data[start:place]
    if data[place : place + 1] != bytes((LOCAL_IMAGE,)):
        return data
    if place == head + len(control):
        return data
    return data[:head] + control + data[place:]
