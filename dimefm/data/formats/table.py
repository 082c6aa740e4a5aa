"""A CSV or TSV table with a header: open_clip's ``filepath`` and ``title``, or columns by name.

Image files are looked up under ``--dataroot``, else in the folder of the table, and may not leave
that folder. In a CSV a cell may be in quotes; in a TSV a line is a row, and a quotation mark is a
character. A row without a key has the name of its image file as key, for images and for texts, else
its number. Rows are read at their byte offsets.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dimefm.data.cells import image_of, is_base64
from dimefm.data.columns import (
    LONGEST_NAME,
    USUAL,
    choose,
    looks_like_data,
    sentences,
    shown,
)
from dimefm.data.lines import (
    BLOCK,
    LONGEST_TEXT,
    PlainBytes,
    read_exactly,
    refuse_other_encodings,
)
from dimefm.data.records import record_offsets
from dimefm.data.rows import Columns, Row, Shard, label_of
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow, DataError

SUFFIXES = (".csv", ".tsv")
KINDS = frozenset({"image", "text"})
CELL = 1 << 24  # characters; Python's own limit, 131,072, is less than some long texts have
LONGEST_IMAGE = 128 << 20  # bytes of a row that may hold an image in base64
FIRST_LINE = 1 << 20  # characters of it that are read to tell the format
MOST_UNREADABLE = 0.01  # of the rows may be no UTF-8; more are a table in another encoding
LINE = re.compile(r"[^\r\n]*")
DOUBLED = re.compile(r'"([^"]*(?:""[^"]*)+)"')  # a cell that surely was put into quotes
TELLING = ({*USUAL["image"], *USUAL["text"]}) - {"image", "jpg", "png"}  # tell a header from a row


def claims(path: Path) -> bool:
    """A ``.csv`` always, a ``.tsv`` when its first line is a header with a usual column name."""
    if path.suffix == ".csv":
        return True
    if path.with_suffix(".lineidx").exists():
        return False
    cells = {cell.strip('"').lower() for cell in _first_line(path).split("\t")}
    return not TELLING.isdisjoint(cells)


def _first_line(path: Path) -> str:
    """Return the first line of a table, at most FIRST_LINE characters of it."""
    with path.open("r", encoding="utf-8-sig", errors="replace") as file:
        return file.readline(FIRST_LINE).rstrip("\n")


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one table; raise DataError when its header lacks the columns that ``kind`` needs."""
    return [TableShard(path, name, kind, columns)]


def _separator(path: Path, columns: Columns) -> str:
    """Return the separator of a table: the one asked for, else a tab for ``.tsv``, else a comma.

    open_clip writes ``.csv`` files with tabs: such a header has tabs, and cut at commas no column
    of a known name. It is then cut at tabs.
    """
    if columns.separator is not None:
        return _asked(columns.separator)
    if path.suffix == ".tsv":
        return "\t"
    head = _first_line(path)
    known = {columns.image, columns.text, columns.key, columns.label}.union(*USUAL.values())
    cells = {cell.strip().strip('"') for cell in head.split(",")}
    has_tabs_only = "\t" in head and known.isdisjoint(cells)
    return "\t" if has_tabs_only else ","


def _asked(separator: str) -> str:
    """Return the character of ``--separator``; raise DataError when it is not one."""
    if separator in ("tab", "\\t"):
        return "\t"
    if len(separator) != 1 or separator in '\r\n"':
        raise DataError(
            f"--separator {separator}: expected one character, or tab. Fix: name the character that"
            " stands between the columns"
        )
    return separator


class _Dialect:
    """How a record of a table is cut into cells."""

    def __init__(self, separator: str, has_quotes: bool):
        self.separator = separator
        self.has_quotes = has_quotes

    @staticmethod
    def of(path: Path, columns: Columns) -> _Dialect:
        """Return the dialect of a table; a TSV whose header is all in quotes is as a CSV."""
        separator = _separator(path, columns)
        if path.suffix != ".tsv":
            return _Dialect(separator, True)
        header = _first_line(path).split(separator)
        is_quoted = all(re.fullmatch('"[^"]+"', cell) for cell in header)
        return _Dialect(separator, is_quoted)

    def cells(self, record: str) -> list[str]:
        """Return the cells of a record."""
        if self.has_quotes:
            lines = csv.reader(io.StringIO(record, newline=""), delimiter=self.separator)
            return next(lines)
        line = LINE.match(record)[0]
        return [_unquoted(cell) for cell in line.split(self.separator)]


def _unquoted(cell: str) -> str:
    """Return a cell without quotes around it, if it has doubled quotes inside."""
    match = DOUBLED.fullmatch(cell)
    return cell if match is None else match[1].replace('""', '"')


def column_names(path: Path, columns: Columns | None = None) -> list[str]:
    """Return the names in the first line of a table, none when it is empty."""
    dialect = _Dialect.of(path, columns or Columns())
    line = _first_line(path)
    return dialect.cells(line) if line else []


class TableShard(Divisible):
    """One table, whose rows are read one by one."""

    def __init__(self, path: Path, name: str, kind: str, columns: Columns):
        """Raises DataError when the table is empty, lacks a column or is in another encoding."""
        super().__init__(path, name)
        self._root = columns.root or path.parent
        self._kind = kind
        self._longest = LONGEST_TEXT if kind == "text" else LONGEST_IMAGE
        if csv.field_size_limit() < self._longest:
            csv.field_size_limit(self._longest)
        self._source = PlainBytes(path)
        refuse_other_encodings(path, self._source)
        self._dialect = _Dialect.of(path, columns)
        self._offsets = record_offsets(
            path,
            self._source,
            self._dialect.separator,
            self._dialect.has_quotes,
            CELL,
        )
        if len(self._offsets) < 2:
            raise DataError(
                f"{path}: the table is empty, expected a first line with the names of the"
                " columns. Fix: add it, or remove the file"
            )
        self._header = self._read_header()
        self._chosen = choose(path, self._header, kind, columns)
        if looks_like_data(self._header):
            raise DataError(
                f"{path}: its first line looks like a row ({shown(', '.join(self._header))}),"
                " expected the names of the columns. Fix: add a line with them"
            )
        self._refuse_unreadable()

    def _read_header(self) -> list[str]:
        """Return the names of the columns."""
        start, end = self._offsets[:2].tolist()
        raw = read_exactly(self.path, self._source, start, min(end, start + FIRST_LINE))
        try:
            return self._dialect.cells(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self._other_encoding("its first line", error) from error

    def _other_encoding(self, where: str, error: UnicodeDecodeError) -> DataError:
        """Return the error for a table that is not UTF-8."""
        return DataError(
            f"{self.path}: cannot be read as a table: {where} is not UTF-8 ({error.reason}, byte"
            f" {error.object[error.start]:#x}). Fix: save it as UTF-8"
        )

    def _refuse_unreadable(self) -> None:
        """Raise DataError when many rows are not UTF-8: then the table is in another encoding."""
        unreadable = 0
        first: tuple[int, UnicodeDecodeError] | None = None
        for row, record in self._records_of_undecodable_chunks():
            try:
                record.decode("utf-8")
            except UnicodeDecodeError as reason:
                unreadable += 1
                first = first or (row, reason)
        if first is not None and unreadable > MOST_UNREADABLE * len(self):
            row, error = first
            raise self._other_encoding(f"row {row}", error) from error

    def _records_of_undecodable_chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) of all rows in chunks that are not wholly UTF-8."""
        for rows in self._chunks(range(len(self))):
            chunk = self._chunk(rows)
            try:
                chunk.decode("utf-8")
            except UnicodeDecodeError:
                yield from zip(rows, self._cut(rows, chunk), strict=True)

    def _chunks(self, rows: range) -> Iterator[range]:
        """Yield parts of some rows that fit into a block; a row that is too long is left out."""
        first = rows.start
        while first < rows.stop:
            start = int(self._offsets[first + 1])
            end = int(np.searchsorted(self._offsets, start + BLOCK, side="right")) - 2
            last = min(max(end, first + 1), rows.stop)
            is_too_long = last == first + 1 and self._size(first) > self._longest
            if not is_too_long:
                yield range(first, last)
            first = last

    def _chunk(self, rows: range) -> bytes:
        """Return the bytes of some rows."""
        start = int(self._offsets[rows.start + 1])
        end = int(self._offsets[rows.stop + 1])
        return read_exactly(self.path, self._source, start, end)

    def _cut(self, rows: range, chunk: bytes) -> list[bytes]:
        """Return the bytes of each of some rows."""
        places = self._offsets[rows.start + 1 : rows.stop + 2] - self._offsets[rows.start + 1]
        edges = places.tolist()
        return [chunk[edges[i] : edges[i + 1]] for i in range(len(rows))]

    def _size(self, row: int) -> int:
        """Return the number of bytes of a row."""
        return int(self._offsets[row + 2] - self._offsets[row + 1])

    def __len__(self) -> int:
        return len(self._offsets) - 2

    def _cells(self, index: int) -> list[str]:
        """Return the cells of a row; raise BadRow when it is too long or not UTF-8."""
        size = self._size(index)
        if size > self._longest:
            raise BadRow(f"has {size:,} bytes; at most {self._longest:,} of a row are read")
        try:
            record = self._chunk(range(index, index + 1)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow(f"is not UTF-8: {error.reason} at byte {error.start}") from error
        return self._dialect.cells(record)

    def _cell(self, cells: list[str], column: str | None) -> str | None:
        """Return a cell of a row, None when the row has none in that column."""
        if column is None:
            return None
        place = self._header.index(column)
        return cells[place] if place < len(cells) else None

    def keys_of(self, rows: range) -> list[str]:
        chosen = self._chosen
        if chosen.key is None and chosen.file is None:
            return [str(index) for index in rows]
        return self._keys(rows, with_files=True)

    def former_keys_of(self, rows: range) -> list[str] | None:
        is_same = self._kind != "text" or self._chosen.file is None
        return None if is_same else self._keys(rows, with_files=False)

    def _keys(self, rows: range, with_files: bool) -> list[str]:
        """Return the keys of rows; those of unreadable ones, too."""
        keys = {index: str(index) for index in rows}
        for part in self._chunks(rows):
            for index, cells in zip(part, self._rows_of(part), strict=True):
                keys[index] = self._key(cells, index, with_files)
        return list(keys.values())

    def _rows_of(self, part: range) -> list[list[str]]:
        """Return the cells of some rows that fit into a block; bytes of no UTF-8 are replaced."""
        chunk = self._chunk(part)
        if self._dialect.has_quotes:
            text = chunk.decode("utf-8", "replace")
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=self._dialect.separator)
            rows = [row for row in lines if row]
            if len(rows) == len(part):
                return rows
        records = self._cut(part, chunk)
        return [self._dialect.cells(record.decode("utf-8", "replace")) for record in records]

    def _key(self, cells: list[str], index: int, with_files: bool = True) -> str:
        """Return the key of a row: that of its column, else the image's file, else its number."""
        key = self._cell(cells, self._chosen.key)
        if not key and with_files:
            file = self._cell(cells, self._chosen.file) or ""
            is_name = len(file) <= LONGEST_NAME and not is_base64(file)
            key = file if is_name else None
        return key or str(index)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        chosen = self._chosen
        cells = self._cells(index)
        expected = len(self._header)
        if len(cells) != expected:
            raise BadRow(f"has {len(cells)} columns; expected {expected} as in the header")
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if chosen.image is not None:
            cell = self._cell(cells, chosen.image)
            image = image_of(cell, self._root, f"{self.path}, row {index}")
        if chosen.text is not None:
            texts = sentences(self._cell(cells, chosen.text))
        return Row(self._key(cells, index), image, texts, self._label(cells))

    def labels(self) -> list:
        """Return the label of every row, or None."""
        labels: list = []
        for index in range(len(self)):
            try:
                labels.append(self._label(self._cells(index)))
            except BadRow:
                labels.append(None)
        return labels

    def _label(self, cells: list[str]) -> int | str | None:
        label = self._cell(cells, self._chosen.label)
        return label_of(label) if label else None
