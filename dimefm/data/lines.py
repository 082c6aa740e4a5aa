"""The lines of a file at their byte offsets, which a scan in blocks finds.

Memory is one block and eight bytes a line, whatever the size of the file. Lines are cut as bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from dimefm.data.pread import PreadFile
from dimefm.data.unpacking import GzipText
from dimefm.errors import BadRow, DataError

BLOCK = 4 << 20  # bytes that a scan reads at once
LONGEST_TEXT = 16 << 20  # bytes of a line that holds texts alone
LONGEST_LINE = 256 << 20  # bytes of a line that may hold an image in base64
HEAD = 4096  # bytes of a file that tell its encoding

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-32, too
MOST_NULS = 0.3  # of every second byte of a text; UTF-16 has more


class Bytes(Protocol):
    """A file of ``size`` bytes that is read at offsets."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end."""


class PlainBytes:
    """The bytes of a file as they are."""

    def __init__(self, path: Path):
        self.size = os.path.getsize(path)
        self._file = PreadFile(path)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end."""
        return self._file.read(offset, size)


def bytes_of(path: Path) -> Bytes:
    """Return the bytes of a text file, those of a ``.gz`` file unpacked."""
    return GzipText(path) if path.suffix == ".gz" else PlainBytes(path)


def blocks(source: Bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of a file, block by block."""
    offset = 0
    while offset < source.size:
        block = source.read(offset, BLOCK)
        if not block:
            return
        yield offset, block
        offset += len(block)


def line_offsets(source: Bytes) -> np.ndarray:
    """Return the byte offsets of the lines of a file and its end, int64 [lines + 1].

    Lines end with a newline; a last line without one counts.
    """
    pieces = [np.zeros(1, dtype=np.int64)]
    for offset, block in blocks(source):
        codes = np.frombuffer(block, dtype=np.uint8)
        newlines = np.flatnonzero(codes == ord("\n")).astype(np.int64)
        newlines += offset + 1
        pieces.append(newlines)
    offsets = np.concatenate(pieces)
    if offsets[-1] != source.size:  # the last line has no newline
        offsets = np.append(offsets, source.size)
    return offsets


def refuse_other_encodings(path: Path, source: Bytes) -> None:
    """Raise DataError for a text in UTF-16 or UTF-32, with a byte order mark or without."""
    head = source.read(0, HEAD)
    has_mark = head.startswith(UTF16_MARKS)
    if has_mark or _is_wide(head):
        raise DataError(
            f"{path}: its text is UTF-16 or UTF-32, expected UTF-8. Fix: save it as UTF-8, e.g."
            " with iconv -f UTF-16 -t UTF-8"
        )


def refuse_returns(path: Path, source: Bytes) -> None:
    """Raise DataError for a text whose lines end with a carriage return alone: it would be one
    line.
    """
    head = source.read(0, HEAD)
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(
            f"{path}: its lines end with a carriage return alone, expected line feeds. Fix: convert"
            " it, e.g. with mac2unix"
        )


def _is_wide(head: bytes) -> bool:
    """Tell whether every second byte of a text is NUL, as in UTF-16 without a byte order mark."""
    if b"\0" not in head or len(head) < 4:
        return False
    codes = np.frombuffer(head, dtype=np.uint8)
    is_nul = codes == 0
    shares = (is_nul[0::2].mean(), is_nul[1::2].mean())
    return max(shares) > MOST_NULS


class Lines:
    """The lines of a text file as bytes without their line ends, in any order.

    A byte order mark of UTF-8 is no part of the first line. Lines of more than ``longest`` bytes
    are bad rows.
    """

    def __init__(self, path: Path, longest: int = LONGEST_TEXT):
        self.path = path
        self.longest = longest
        self.source = bytes_of(path)
        refuse_other_encodings(path, self.source)
        self._offsets = line_offsets(self.source)

    def __reduce__(self):
        return Lines, (self.path, self.longest)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        start = int(self._offsets[index])
        end = int(self._offsets[index + 1])
        if end - start > self.longest:
            raise BadRow(f"has {end - start:,} bytes; at most {self.longest:,} of a line are read")
        line = read_exactly(self.path, self.source, start, end)
        if index == 0:
            line = line.removeprefix(UTF8_MARK)
        return line.removesuffix(b"\n").removesuffix(b"\r")


def read_exactly(path: Path, source: Bytes, start: int, end: int) -> bytes:
    """Return bytes ``start`` to ``end`` of a file; raise DataError when it ends before."""
    raw = source.read(start, end - start)
    if len(raw) < end - start:
        raise DataError(
            f"{path}: ends at byte {start + len(raw):,}, before it had {source.size:,} bytes, so it"
            " was cut while in use. Fix: write it again, and start again"
        )
    return raw
