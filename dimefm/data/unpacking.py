"""Read a gzip file at offsets of its unpacked bytes, in bounded memory.

A first pass through the file notes the decoder's state every SPAN bytes. A read continues at the
state before it. The blocks that were used last stay in memory, KEPT bytes of all files together.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from dimefm.data.pread import PreadFile
from dimefm.errors import DataError

SPAN = 4 << 20  # unpacked bytes of a block
KEPT = 256 << 20  # unpacked bytes that stay in memory
PACKED = 1 << 16  # packed bytes that are read at once
GZIP = 31  # of zlib: a gzip header, and a window of any size

# Text packs to a third or a twentieth, so a file beyond both bounds is a bomb.
MOST_BYTES = 1 << 30
MOST_TIMES = 200


class _Decoder:
    """Unpacks a gzip file from a place on; members follow one another."""

    def __init__(self, file: PreadFile):
        self._file = file
        self._inner = zlib.decompressobj(GZIP)
        self.position = 0  # of the next packed byte

    def copy(self) -> _Decoder:
        """Return a decoder that continues at the same place."""
        twin = _Decoder(self._file)
        twin._inner = self._inner.copy()
        twin.position = self.position
        return twin

    def unpack(self, size: int) -> bytes:
        """Return the next ``size`` unpacked bytes, fewer at the end of the file.

        Raises zlib.error for damage, EOFError for a file that is cut short.
        """
        pieces: list[bytes] = []
        wanted = size
        while wanted:
            packed = self._file.read(self.position, PACKED)
            if self._inner.eof:
                packed = self._next_member(packed)
                if not packed:
                    break
                self._inner = zlib.decompressobj(GZIP)
            piece = self._inner.decompress(packed, wanted)
            is_at_end = not packed and not piece
            if is_at_end and not self.position:  # an empty file
                break
            if is_at_end and not self._inner.eof:
                raise EOFError("it is cut short")
            unread = self._inner.unconsumed_tail or self._inner.unused_data
            self.position += len(packed) - len(unread)
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def _next_member(self, packed: bytes) -> bytes:
        """Return the packed bytes from the next member on; zeros may stand before it."""
        member = packed.lstrip(b"\0")
        self.position += len(packed) - len(member)
        while packed and not member:
            packed = self._file.read(self.position, PACKED)
            member = packed.lstrip(b"\0")
            self.position += len(packed) - len(member)
        return member


class GzipText:
    """The unpacked bytes of a gzip file, ``size`` in number."""

    def __init__(self, path: Path):
        """Raises DataError for a damaged file and for a bomb."""
        self.path = path
        self._states: list[_Decoder] = []  # [blocks] at the start of each block
        self._lock = threading.Lock()
        self.size = 0
        self._scan()

    def __reduce__(self):
        return GzipText, (self.path,)

    def _scan(self) -> None:
        """Unpack the whole file once, and note the states; the last blocks stay in memory."""
        bound = max(MOST_BYTES, MOST_TIMES * self.path.stat().st_size)
        decoder = _Decoder(PreadFile(self.path))
        while True:
            state = decoder.copy()
            block = self._unpack(decoder)
            if not block:
                return
            _memory.keep(self, len(self._states), block)
            self._states.append(state)
            self.size += len(block)
            if self.size > bound:
                raise DataError(
                    f"{self.path}: unpacks to more than {bound:,} bytes, over {MOST_TIMES} times"
                    " its size. Fix: unpack it with gunzip if it is no bomb"
                )

    def _unpack(self, decoder: _Decoder) -> bytes:
        """Return the next block; raise DataError when the file is damaged."""
        try:
            return decoder.unpack(SPAN)
        except (zlib.error, EOFError) as error:
            raise DataError(
                f"{self.path}: not a whole gzip file ({error}). Fix: fetch or write it again"
            ) from error

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` unpacked bytes from ``offset`` on, fewer at the end."""
        end = min(offset + size, self.size)
        pieces: list[bytes] = []
        while offset < end:
            number, skipped = divmod(offset, SPAN)
            block = self._block(number)
            piece = block[skipped : skipped + end - offset]
            if not piece:  # the file was cut meanwhile
                break
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def _block(self, number: int) -> bytes:
        """Return an unpacked block, from memory or from the file."""
        block = _memory.get(self, number)
        if block is None:
            with self._lock:
                decoder = self._states[number].copy()
            block = self._unpack(decoder)
            _memory.keep(self, number, block)
        return block


class _Memory:
    """Blocks of all files that were used last."""

    def __init__(self):
        self._blocks: OrderedDict[tuple[int, int], tuple[Any, bytes]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, file: GzipText, number: int) -> bytes | None:
        """Return a block of a file, None when it is not in memory."""
        with self._lock:
            kept = self._blocks.get((id(file), number))
            if kept is None or kept[0] is not file:
                return None
            self._blocks.move_to_end((id(file), number))
            return kept[1]

    def keep(self, file: GzipText, number: int, block: bytes) -> None:
        """Keep a block, and drop those that were used longest ago."""
        with self._lock:
            _, before = self._blocks.pop((id(file), number), (None, b""))
            self._blocks[id(file), number] = (file, block)
            self._total += len(block) - len(before)
            while self._total > KEPT and len(self._blocks) > 1:
                _, (_, dropped) = self._blocks.popitem(last=False)
                self._total -= len(dropped)


_memory = _Memory()
