"""A CSV or TSV table with a header: open_clip's ``filepath`` and ``title``, or columns by name.

Image files are looked up under ``--dataroot``, else in the folder of the table, and may not leave
that folder.
"""

from __future__ import annotations

import csv
from pathlib import Path

from dimefm.data.columns import USUAL, Chosen, choose, read_file, sentences
from dimefm.data.rows import Columns, Row, Shard
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow, DataError

SUFFIXES = (".csv", ".tsv")
KINDS = frozenset({"image", "text"})
CELL = 1 << 24  # characters; Python's own limit, 131,072, is less than some long texts have
TELLING = ({*USUAL["image"], *USUAL["text"]}) - {"image", "jpg", "png"}  # tell a header from a row


def claims(path: Path) -> bool:
    """A ``.csv`` always, a ``.tsv`` when its first line is a header with a usual column name."""
    if path.suffix == ".csv":
        return True
    if path.with_suffix(".lineidx").exists():
        return False
    with path.open("r", encoding="utf-8", errors="replace") as file:
        head = file.readline().rstrip("\n").split("\t")
    return not TELLING.isdisjoint(head)


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one table; raise DataError when its header lacks the columns that ``kind`` needs."""
    rows = _read(path, _separator(path, columns))
    if not rows:
        raise DataError(f"{path}: the table is empty; its first line must name the columns")
    chosen = choose(path, rows[0], kind, columns)
    return [TableShard(path, name, rows, chosen, columns.root)]


def _separator(path: Path, columns: Columns) -> str:
    """Return the separator of a table: the one asked for, else a tab for ``.tsv``, else a comma.

    open_clip writes ``.csv`` files with tabs: such a header has tabs, and cut at commas no column
    of a known name. It is then cut at tabs.
    """
    if columns.separator is not None:
        return _asked(columns.separator)
    if path.suffix == ".tsv":
        return "\t"
    with path.open("r", encoding="utf-8-sig", errors="replace") as file:
        head = file.readline().rstrip("\n")
    known = {columns.image, columns.text, columns.key, columns.label}.union(*USUAL.values())
    cells = {cell.strip().strip('"') for cell in head.split(",")}
    has_tabs_only = "\t" in head and known.isdisjoint(cells)
    return "\t" if has_tabs_only else ","


def _asked(separator: str) -> str:
    """Return the character of ``--separator``; raise DataError when it is not one."""
    if separator in ("tab", "\\t"):
        return "\t"
    if len(separator) != 1 or separator in '\r\n"':
        raise DataError(f"--separator {separator}: expected one character, or tab")
    return separator


def _read(path: Path, separator: str) -> list[list[str]]:
    """Return the cells of all lines; a cell may have up to CELL characters."""
    before = csv.field_size_limit(CELL)
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=separator)
            return list(lines)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as a table: {error}. Fix: save it as UTF-8"
        ) from error
    except csv.Error as error:
        reason = str(error)
        if "field limit" in reason:
            reason = f"a cell has more than {CELL:,} characters"
        raise DataError(
            f"{path}, line {lines.line_num}: cannot be read as a table: {reason}. Fix: look for a"
            " quote that is left open"
        ) from error
    finally:
        csv.field_size_limit(before)


class TableShard(Divisible):
    """One table, held in memory: file names and captions are small."""

    def __init__(
        self,
        path: Path,
        name: str,
        rows: list[list[str]],
        chosen: Chosen,
        root: Path | None,
    ):
        super().__init__(path, name)
        self._header = rows[0]
        self._rows = [row for row in rows[1:] if row]
        self._chosen = chosen
        self._root = root or path.parent

    def __len__(self) -> int:
        return len(self._rows)

    def _cell(self, index: int, column: str | None) -> str | None:
        """Return a cell of a row, None when the row has none in that column."""
        if column is None:
            return None
        place = self._header.index(column)
        row = self._rows[index]
        if place >= len(row):
            return None
        return row[place]

    def keys_of(self, rows: range) -> list[str]:
        return [self._key(index) for index in rows]

    def _key(self, index: int) -> str:
        """Return the key of a row: that of its column, else the image's file, else its number."""
        key = self._cell(index, self._chosen.key)
        file = self._cell(index, self._chosen.image)
        return key or file or str(index)

    def _image(self, index: int) -> bytes:
        """Return the bytes of the image file that a row names."""
        name = self._cell(index, self._chosen.image)
        return read_file(self._root, name, f"{self.path}, row {index}")

    def __getitem__(self, index: int) -> Row:
        chosen = self._chosen
        count = len(self._rows[index])
        expected = len(self._header)
        if count != expected:
            raise BadRow(f"has {count} columns; expected {expected} as in the header")
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if chosen.image is not None:
            image = self._image(index)
        if chosen.text is not None:
            texts = sentences(self._cell(index, chosen.text))
        return Row(self._key(index), image, texts, self._label(index))

    def labels(self) -> list:
        """Return the label of every row, or None."""
        return [self._label(index) for index in range(len(self))]

    def _label(self, index: int) -> int | str | None:
        label = self._cell(index, self._chosen.label)
        if not label:
            return None
        return int(label) if label.isdecimal() else label
