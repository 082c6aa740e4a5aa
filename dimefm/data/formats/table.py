"""A CSV or TSV table with a header: open_clip's ``filepath`` and ``title`` columns, or others by
name.

Image files are looked up under ``--dataroot``, else next to the table, and may not leave that
folder.
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
CELL = 1 << 24  # characters; Python's own limit, 131,072, is less than some long sentences have


def claims(path: Path) -> bool:
    """A ``.csv`` always, a ``.tsv`` when its first line is a header with a usual column name."""
    if path.suffix == ".csv":
        return True
    if path.with_suffix(".lineidx").exists():
        return False
    with path.open("r", encoding="utf-8", errors="replace") as file:
        head = file.readline().rstrip("\n").split("\t")
    return any(
        name in USUAL[what]
        for name in head
        for what in ("image", "text")
        if name not in ("image", "jpg", "png")
    )


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one table; raise DataError when it has no header with the columns that ``kind``
    needs.
    """
    rows = _read(path, _separator(path, columns))
    if not rows:
        raise DataError(f"{path}: the table is empty; its first line must name the columns")
    return [TableShard(path, name, rows, choose(path, rows[0], kind, columns), columns.root)]


def _separator(path: Path, columns: Columns) -> str:
    """Return the separator asked for, else a tab for ``.tsv``, else a comma, or a tab where only
    that one makes sense.

    open_clip writes ``.csv`` files with tabs: such a header has tabs, and cut at commas no column
    of a known name.
    """
    asked = columns.separator
    if asked is not None:
        asked = "\t" if asked in ("tab", "\\t") else asked
        if len(asked) != 1 or asked in '\r\n"':
            raise DataError(f"--separator {asked}: expected one character, or tab")
        return asked
    if path.suffix == ".tsv":
        return "\t"
    with path.open("r", encoding="utf-8-sig", errors="replace") as file:
        head = file.readline().rstrip("\n")
    known = {columns.image, columns.text, columns.key, columns.label}.union(*USUAL.values())
    cells = {cell.strip().strip('"') for cell in head.split(",")}
    return "\t" if "\t" in head and known.isdisjoint(cells) else ","


def _read(path: Path, separator: str) -> list[list[str]]:
    """Return the cells of all lines; a cell may have up to CELL characters."""
    before = csv.field_size_limit(CELL)
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=separator)
            return list(lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as a table: {error}; save it as UTF-8") from error
    except csv.Error as error:
        reason = (
            f"a cell has more than {CELL:,} characters"
            if "field limit" in str(error)
            else str(error)
        )
        where = f"{path}, line {lines.line_num}"
        raise DataError(
            f"{where}: cannot be read as a table: {reason}; look for a quote that is left open"
        ) from error
    finally:
        csv.field_size_limit(before)


class TableShard(Divisible):
    """One table, held in memory: file names and captions are small."""

    def __init__(
        self, path: Path, name: str, rows: list[list[str]], chosen: Chosen, root: Path | None
    ):
        super().__init__(path, name)
        self._header, self._rows = rows[0], [row for row in rows[1:] if row]
        self._chosen = chosen
        self._root = root or path.parent

    def __len__(self) -> int:
        return len(self._rows)

    def _cell(self, index: int, column: str | None) -> str | None:
        place = -1 if column is None else self._header.index(column)
        row = self._rows[index]
        return row[place] if 0 <= place < len(row) else None

    def keys_of(self, rows: range) -> list[str]:
        return [self._key(index) for index in rows]

    def _key(self, index: int) -> str:
        return (
            self._cell(index, self._chosen.key)
            or self._cell(index, self._chosen.image)
            or str(index)
        )

    def _file(self, index: int) -> bytes:
        return read_file(
            self._root, self._cell(index, self._chosen.image), f"{self.path}, row {index}"
        )

    def __getitem__(self, index: int) -> Row:
        chosen = self._chosen
        if len(self._rows[index]) != len(self._header):
            raise BadRow(
                f"has {len(self._rows[index])} columns; expected {len(self._header)} as in the"
                " header"
            )
        image = None if chosen.image is None else self._file(index)
        texts = () if chosen.text is None else sentences(self._cell(index, chosen.text))
        return Row(self._key(index), image, texts, self._label(index))

    def labels(self) -> list:
        """Return the label of every row, or None."""
        return [self._label(index) for index in range(len(self))]

    def _label(self, index: int) -> int | str | None:
        label = self._cell(index, self._chosen.label)
        return int(label) if label is not None and label.isdecimal() else label or None
