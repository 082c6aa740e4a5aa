"""Whether a JPEG holds its whole picture.

Decoders show half a picture with a gray rest when the data end early, and say nothing: libjpeg only
warns. Its warnings are read here. Not all of them mean damage: bytes between segments, junk behind
the picture and wrong numbers in a header are common in good photos, whose pixels are all there.

A progressive JPEG sends its picture several times, each time finer. When its last scans are missing
nothing warns, so the scans are counted: every bit of every coefficient must be sent.

Source of the format: ITU-T T.81 (1992), annexes B and G.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import JpegImagePlugin

from dimefm.errors import BadRow
from dimefm.storage.reading import is_row_fault

try:
    import simplejpeg
except ImportError:  # no wheel for this system
    simplejpeg = None

START = b"\xff\xd8"
END = b"\xff\xd9"
# A marker; no byte that is stuffed, no fill byte, no restart marker.
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
STARTS_PICTURE, ENDS_PICTURE, STARTS_SCAN, RESTART_INTERVAL = 0xD8, 0xD9, 0xDA, 0xDD
NEEDED = (0xC4, 0xCC, 0xDB, 0xDC, RESTART_INTERVAL)  # tables and numbers that decoding needs
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xCA)
COEFFICIENTS = 64  # of a block

MOST_SEGMENTS = 10_000
MOST_SCANS = 100  # encoders write 10 or so, and each one goes through the whole picture
MOST_JUNK = 1 << 20  # bytes between segments
PADDING = 8  # bytes too many that are not looked at
REPAIRS = 8  # times that padding between scans is removed
DAMAGE = re.compile(
    r"premature end of data|bad huffman code|bad arithmetic code|instead of RST|extraneous bytes",
    re.IGNORECASE,
)
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]+)")
ONES = b"\xff\x00" * 8  # bits that end no block early, in place of the end mark


class Scan(NamedTuple):
    """One scan: its ``components``, the coefficients ``first`` to ``last`` that it sends, down to
    bit ``low``, and where its data ``start`` and ``end``.
    """

    components: bytes
    first: int
    last: int
    low: int
    start: int
    end: int


@dataclass
class Jpeg:
    """The outline of a JPEG: the marker of its frame, its components, its scans, and the parts of
    the file that decoding needs, in order.
    """

    data: bytes
    frame: int = 0
    components: bytes = b""
    scans: list[Scan] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    restart_interval: int = 0

    @property
    def progressive(self) -> bool:
        """Whether the picture is sent several times."""
        return self.frame in PROGRESSIVE

    def essence(self) -> bytes:
        """Return the JPEG without metadata, junk and oddities of its headers."""
        return START + b"".join(self.parts) + END


def is_jpeg(data: bytes) -> bool:
    """Tell whether a file begins as JPEGs do."""
    return data.startswith(START)


def outline(data: bytes) -> Jpeg:
    """Return the outline of a JPEG, as far as its segments can be followed.

    Raises BadRow for one that takes a decoder minutes: of too many segments or scans, or with too
    much junk between them.
    """
    jpeg = Jpeg(data)
    place = len(START)
    segments = 0
    junk = 0
    while (match := MARKER.search(data, place)) is not None:
        segments += 1
        junk += match.start() - place
        _refuse_endless(segments, junk, len(jpeg.scans))
        marker = match[1][0]
        if marker == ENDS_PICTURE:
            break
        place = match.end()
        if marker in (0x01, STARTS_PICTURE):
            continue
        length = int.from_bytes(data[place : place + 2])
        end = place + max(2, length)
        if end > len(data):
            break
        body = data[place + 2 : end]
        place = end
        if marker == STARTS_SCAN:
            place = _take_scan(jpeg, body, place)
        else:
            _take_segment(jpeg, marker, body)
    return jpeg


def _refuse_endless(segments: int, junk: int, scans: int) -> None:
    if segments > MOST_SEGMENTS:
        raise BadRow(f"image is not read: a JPEG of more than {MOST_SEGMENTS:,} segments")
    if scans > MOST_SCANS:
        raise BadRow(f"image is not read: a JPEG of more than {MOST_SCANS} scans")
    if junk > MOST_JUNK:
        raise BadRow(f"image is damaged: more than {MOST_JUNK:,} bytes between its segments")


def _take_segment(jpeg: Jpeg, marker: int, body: bytes) -> None:
    """Note a segment that decoding needs."""
    if marker in FRAMES:
        if not jpeg.frame and len(body) >= 6:
            jpeg.frame = marker
            jpeg.components = body[6::3][: body[5]]
    elif marker not in NEEDED:
        return
    if marker == RESTART_INTERVAL:
        jpeg.restart_interval = int.from_bytes(body[:2])
    jpeg.parts.append(_segment(marker, body))


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2) + body


def _take_scan(jpeg: Jpeg, body: bytes, start: int) -> int:
    """Note a scan whose header is ``body`` and whose data begin at ``start``; return their end."""
    following = MARKER.search(jpeg.data, start)
    end = len(jpeg.data) if following is None else following.start()
    count = body[0] if body else 0
    components = body[1 : 1 + 2 * count : 2]
    numbers = body[1 + 2 * count :]
    if len(numbers) < 3:
        return end
    if not jpeg.progressive:  # some cameras write zeros, which decoders ignore
        numbers = bytes((0, COEFFICIENTS - 1, 0))
        body = body[: 1 + 2 * count] + numbers
    first, last, bits = numbers[:3]
    jpeg.scans.append(Scan(components, first, last, bits & 15, start, end))
    jpeg.parts.append(_segment(STARTS_SCAN, body))
    jpeg.parts.append(jpeg.data[start:end])
    return end


def refuse_missing_scans(jpeg: Jpeg) -> None:
    """Raise BadRow unless the scans send every component, down to the last bit."""
    if not jpeg.frame or not jpeg.scans:
        return  # the decoder says what is wrong
    lowest_bits: dict[int, list[int]] = {}
    for component in jpeg.components:
        lowest_bits[component] = [COEFFICIENTS] * COEFFICIENTS
    for scan in jpeg.scans:
        for component in scan.components:
            bits = lowest_bits.get(component)
            if bits is None:
                continue
            for number in range(scan.first, min(scan.last + 1, COEFFICIENTS)):
                bits[number] = min(bits[number], scan.low)
    missing = sum(1 for bits in lowest_bits.values() if any(bits))
    if missing:
        raise BadRow(
            f"image is damaged: a JPEG of {len(jpeg.scans)} scans that lacks a part of {missing} of"
            f" its {len(lowest_bits)} color components"
        )


def refuse_damaged(data: bytes) -> None:
    """Raise BadRow for a JPEG that decoders would fill up with gray.

    Errors that every decoder finds are left to it.
    """
    jpeg = outline(data)
    refuse_missing_scans(jpeg)
    if simplejpeg is None:
        _refuse_short(jpeg)
    elif _warning(data, jpeg) is not None:
        _refuse_bad_warnings(jpeg)


def _refuse_bad_warnings(jpeg: Jpeg) -> None:
    """Raise BadRow when libjpeg warns of the essence of a JPEG that data are missing in it."""
    essence = jpeg.essence()
    for _ in range(REPAIRS):
        warning = _warning(essence, jpeg)
        if warning is None or DAMAGE.search(warning) is None:
            return
        repaired = _without_padding(essence, warning)
        if repaired is None:
            raise BadRow(f"image is damaged: {warning}")
        essence = repaired


def _warning(data: bytes, jpeg: Jpeg) -> str | None:
    """Return what libjpeg-turbo says of a JPEG, None when it says nothing.

    It reads all data, but makes no more than an eighth of the pixels.
    """
    colors = "CMYK" if len(jpeg.components) == 4 else "GRAY"
    try:
        simplejpeg.decode_jpeg(data, colors, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        return str(error)
    return None


def _without_padding(essence: bytes, warning: str) -> bytes | None:
    """Return a JPEG without the bytes that a warning calls extraneous, None when they are data.

    They are padding when they are all alike, or very few, and stand between scans or at the end.
    """
    told = EXTRANEOUS.search(warning)
    if told is None:
        return None
    count = int(told[1])
    marker = int(told[2], 16)
    if RESTART.match(bytes((0xFF, marker))) is not None:
        return None
    for scan in outline(essence).scans:
        end = scan.end
        begin = end - count
        extraneous = essence[begin:end]
        is_padding = len(set(extraneous)) == 1 or count <= PADDING
        if begin >= scan.start and is_padding and essence[end + 1] == marker:
            return essence[:begin] + essence[end:]
    return None


def _refuse_short(jpeg: Jpeg) -> None:
    """Raise BadRow for a JPEG whose data end early, without libjpeg-turbo's warnings.

    PIL decodes the essence with a few bits in place of the end mark: it wants more data when the
    picture is not whole. Progressive JPEGs are read to their end mark, so of these only the scans
    are counted.
    """
    if jpeg.progressive or len(jpeg.scans) != 1 or not jpeg.frame:
        return
    (scan,) = jpeg.scans
    if jpeg.restart_interval:
        numbers = [
            match[1][0] - 0xD0 for match in RESTART.finditer(jpeg.data, scan.start, scan.end)
        ]
        if numbers != [number % 8 for number in range(len(numbers))]:
            raise BadRow("image is damaged: restart markers are missing")
    essence = START + b"".join(jpeg.parts) + ONES
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(essence)) as image:
            image.draft("L", (1, 1))
            image.load()
    except Exception as error:
        if "truncated" in str(error) and is_row_fault(error):
            raise BadRow("image is damaged: premature end of its data") from error
