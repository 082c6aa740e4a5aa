"""The records of a CSV or TSV file at their byte offsets.

In a CSV a cell in quotes may hold separators, line breaks and doubled quotes. In a TSV a record is
a line, and a quotation mark is a character. Lines end with LF, CRLF or CR; empty lines are no
records. The file is scanned in blocks; memory is one block and eight bytes a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data.columns import FILE_OR_URL
from dimefm.data.lines import UTF8_MARK, PlainBytes, blocks
from dimefm.errors import DataError

LF = ord("\n")
CR = ord("\r")
QUOTE = ord('"')


def record_offsets(
    path: Path,
    source: PlainBytes,
    separator: str,
    has_quotes: bool,
    longest_cell: int,
) -> np.ndarray:
    """Return the byte offsets of the records of a file and its end, int64 [records + 1].

    The first record is the header. What lies between two records, as empty lines do, belongs to the
    first of them. Raises DataError, naming the line, for a quote that is left open, and for a cell
    of more than ``longest_cell`` characters that spans lines.
    """
    scan = _Scan(path, separator, has_quotes, longest_cell)
    pieces = [np.empty(0, dtype=np.int64)]
    for start, body, ends in _lines_in_blocks(source):
        pieces.append(scan.starts(start, body, ends))
    scan.finish()
    pieces.append(np.array([source.size], dtype=np.int64))
    return np.concatenate(pieces)


def _lines_in_blocks(source: PlainBytes) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """Yield (offset, bytes, line ends) of whole lines, block by block.

    A line end is the place after the line's last byte, counted from the offset. A line that is
    longer than a block comes in several pieces, all but the last without an end.
    """
    rest = b""
    for offset, block in blocks(source):
        start = offset - len(rest)
        body = rest + block
        is_last = offset + len(block) >= source.size
        ends = _line_ends(body, is_last)
        if not len(ends):  # part of a long line; the next block tells whether a CR ends it
            cut = len(body) - body.endswith(b"\r")
            if cut:
                yield start, body[:cut], ends
            rest = body[cut:]
            continue
        cut = int(ends[-1])
        yield start, body[:cut], ends
        rest = body[cut:]


def _line_ends(body: bytes, is_last: bool) -> np.ndarray:
    """Return where lines end: after LF, CRLF, or a CR that no LF follows; int64."""
    codes = np.frombuffer(body, dtype=np.uint8)
    is_end = codes == LF
    if b"\r" in body:
        is_cr = codes == CR
        followed_by_lf = np.append(is_end[1:], not is_last)  # the next block may begin with LF
        is_end |= is_cr & ~followed_by_lf
    ends = np.flatnonzero(is_end).astype(np.int64) + 1
    has_rest = len(body) and (not len(ends) or ends[-1] != len(body))
    if is_last and has_rest:
        ends = np.append(ends, len(body))
    return ends


class _Scan:
    """Finds the starts of records in lines that come in blocks."""

    def __init__(self, path: Path, separator: str, has_quotes: bool, longest_cell: int):
        self._path = path
        self._longest_cell = longest_cell
        self._has_quotes = has_quotes
        self._cells = _Cells(separator)
        self._line = 0  # number of lines so far
        self._open: _OpenCell | None = None
        self._is_inside = False  # a piece of a long line came last
        self._columns: int | None = None  # of the header
        self._telling: _TellingColumn | None = None

    def starts(self, offset: int, body: bytes, ends: np.ndarray) -> np.ndarray:
        """Return the offsets of the records that begin in the lines of a block."""
        firsts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        if offset == 0 and body.startswith(UTF8_MARK):
            firsts[0] = len(UTF8_MARK)
        has_text = self._have_text(body, firsts)
        if self._is_inside:
            has_text[0] = False
        self._is_inside = not len(ends)
        if self._has_quotes:
            self._join(body, firsts, ends, has_text)
        self._line += len(ends)
        return offset + firsts[has_text]

    @staticmethod
    def _have_text(body: bytes, firsts: np.ndarray) -> np.ndarray:
        """Tell which lines have more than their line end."""
        codes = np.frombuffer(body + b"\n", dtype=np.uint8)
        first_codes = codes[firsts]
        return (first_codes != LF) & (first_codes != CR)

    def _join(
        self,
        body: bytes,
        firsts: np.ndarray,
        ends: np.ndarray,
        is_start: np.ndarray,
    ) -> None:
        """Clear ``is_start`` for the lines that continue a cell in quotes."""
        if self._columns is None:
            self._read_header(body, firsts, ends, is_start)
        if self._open is None and (b'"' not in body or self._cells.end_in_their_lines(body)):
            return
        codes = np.frombuffer(body, dtype=np.uint8)
        quotes = np.flatnonzero(codes == QUOTE)
        quoted_lines = np.unique(np.searchsorted(firsts, quotes, side="right") - 1)
        line_ends = ends if len(ends) else np.array([len(body)])
        next_line = 0
        for line in quoted_lines.tolist():
            if line < next_line:
                continue
            if self._open is not None:  # the lines between hold no quote
                self._extend(body, firsts, line_ends, next_line, line)
                is_start[next_line:line] = False
            text = body[firsts[line] : line_ends[line]]
            if self._open is not None:
                is_start[line] = False
            self._take(text, self._line + line + 1)
            next_line = line + 1
        if self._open is not None:
            self._extend(body, firsts, line_ends, next_line, len(firsts))
            is_start[next_line:] = False

    def _read_header(
        self,
        body: bytes,
        firsts: np.ndarray,
        ends: np.ndarray,
        is_start: np.ndarray,
    ) -> None:
        """Note the number of columns, and the column of file names in the first row.

        A first row with separators inside quotes has further cells here, so it tells no column.
        """
        lines = np.flatnonzero(is_start)[:2].tolist()
        if not lines or not len(ends):
            return
        records = [self._cells.split(body[firsts[line] : ends[line]]) for line in lines]
        self._columns = len(records[0])
        if len(records) > 1 and len(records[1]) == self._columns:
            self._telling = _TellingColumn.among(records[1])

    def _extend(
        self, body: bytes, firsts: np.ndarray, ends: np.ndarray, first: int, last: int
    ) -> None:
        """Add whole lines to the open cell; raise DataError when it is too long."""
        for line in range(first, last):
            text = body[firsts[line] : ends[line]]
            self._add(text, self._line + line + 1)

    def _add(self, text: bytes, number: int) -> None:
        """Add the line ``number`` to the open cell; raise DataError when it is no part of it."""
        cell = self._open
        cell.characters += len(text.decode("utf-8", "replace"))
        if cell.characters > self._longest_cell:
            raise DataError(
                f"{self._path}, line {number}: cannot be read as a table: a cell has more than"
                f" {self._longest_cell:,} characters. Fix: look for a quote that is left open"
            )
        if self._looks_like_row(text):
            raise self._left_open(f"line {number} looks like a row of its own")

    def _take(self, text: bytes, number: int) -> None:
        """Read a line with quotes, number ``number``."""
        was_open = self._open
        if was_open is not None:
            rest = self._cells.rest_after_quote(text)
            if rest is None:  # the cell goes on
                self._add(text, number)
                return
            if not self._cells.is_clean(rest):
                raise self._left_open(f"the next quote, in line {number}, ends no cell")
            self._open = None
            text = rest
        opening = self._cells.open_quote(text)
        if opening is not None:
            self._open = _OpenCell(number, len(text) - opening - 1)

    def _looks_like_row(self, text: bytes) -> bool:
        """Tell whether a line inside an open cell is a row of the table."""
        if self._telling is None:
            return False
        cells = self._cells.split(text)
        return len(cells) == self._columns and self._telling.matches(cells)

    def _left_open(self, reason: str) -> DataError:
        """Return the error for the quote that opened the open cell."""
        return DataError(
            f"{self._path}, line {self._open.line}: a quote is left open ({reason}). Fix: write"
            ' "" for a quote inside a cell, or pass the table as .tsv, where quotes are characters'
        )

    def finish(self) -> None:
        """Raise DataError when a quote is open at the end of the file."""
        if self._open is not None:
            raise self._left_open("the file ends before the next one")


class _OpenCell:
    """A cell in quotes that goes on in the next line: the line of its quote, and its length."""

    def __init__(self, line: int, characters: int):
        self.line = line
        self.characters = characters


@dataclass(frozen=True)
class _TellingColumn:
    """A column by which a row is told from a line of text: of files, URLs or numbers."""

    place: int
    shape: str | None  # of its cells; None for files and URLs

    @staticmethod
    def among(cells: list[bytes]) -> _TellingColumn | None:
        """Return the first such column of a row, None when there is none."""
        texts = [_text(cell) for cell in cells]
        for place, text in enumerate(texts):
            if FILE_OR_URL.search(text):
                return _TellingColumn(place, None)
        for place, text in enumerate(texts):
            shape = _shape(text)
            if "9" in shape and " " not in shape:
                return _TellingColumn(place, shape)
        return None

    def matches(self, cells: list[bytes]) -> bool:
        """Tell whether the cell of a row is as those of this column are."""
        text = _text(cells[self.place])
        if self.shape is None:
            return FILE_OR_URL.search(text) is not None
        return _shape(text) == self.shape


def _text(cell: bytes) -> str:
    """Return a cell as text, without quotes around it."""
    return cell.strip(b'"').decode("utf-8", "replace")


def _shape(text: str) -> str:
    """Return a text with 9 for digits and a for letters: k12 and k7 are both a9."""
    letters = re.sub(r"[^\W\d_]+", "a", text)
    return re.sub(r"\d+", "9", letters)


class _Cells:
    """How one line is cut into cells, as Python's csv module does."""

    def __init__(self, separator: str):
        code = re.escape(separator.encode())
        tail = rb"[^%b\r\n]*+" % code
        inner = rb'[^"]*+(?:""[^"]*+)*+"'
        in_quotes = rb'"' + inner + tail
        plain = rb'(?!")' + tail
        cell = rb"(?:%b|%b)" % (in_quotes, plain)
        self._separator = separator.encode()
        self._closed = re.compile(rb"%b(?:%b%b)*+[\r\n]*" % (cell, code, cell))
        one_line = rb'"[^"\r\n]*+(?:""[^"\r\n]*+)*+"' + tail
        short_cell = rb"(?:%b|%b)" % (one_line, plain)
        line = rb"%b(?:%b%b)*+" % (short_cell, code, short_cell)
        self._lines = re.compile(rb"(?:%b[\r\n]++)*+(?:%b)?+" % (line, line))
        self._before_open = re.compile(rb'(?:%b%b)*+"' % (cell, code))
        self._to_quote = re.compile(inner)
        self._clean_end = re.compile(rb"[\r\n]*$|%b" % code)

    def end_in_their_lines(self, body: bytes) -> bool:
        """Tell whether every cell of several lines ends in the line in which it begins."""
        return self._lines.fullmatch(body) is not None

    def open_quote(self, text: bytes) -> int | None:
        """Return the place of the quote that a line leaves open, None when there is none."""
        if self._closed.fullmatch(text):
            return None
        match = self._before_open.match(text)
        return match.end() - 1 if match else None

    def rest_after_quote(self, text: bytes) -> bytes | None:
        """Return what follows the quote that closes an open cell, None when the line has none."""
        match = self._to_quote.match(text)
        return None if match is None else text[match.end() :]

    def is_clean(self, rest: bytes) -> bool:
        """Tell whether a closing quote is followed by a separator or the end of the line."""
        return self._clean_end.match(rest) is not None

    def split(self, text: bytes) -> list[bytes]:
        """Return the cells of a line without quotes, those in quotes as they are."""
        return text.rstrip(b"\r\n").split(self._separator)
