"""A CSV or TSV table with a header: open_clip's ``filepath`` and ``title`` columns, or others by name.

Image files are looked up under ``--dataroot``, else beside the table, and may not leave that folder.
"""

from __future__ import annotations

import csv
from pathlib import Path

from dimefm.data._columns import USUAL, Chosen, choose, read_file, sentences
from dimefm.data.rows import Columns, Row, Shard
from dimefm.errors import BadRow, DataError

SUFFIXES = (".csv", ".tsv")
KINDS = frozenset({"image", "text"})


def claims(path: Path) -> bool:
    """A ``.csv`` always, a ``.tsv`` when its first line is a header with a usual column name."""
    if path.suffix == ".csv":
        return True
    if path.with_suffix(".lineidx").exists():
        return False
    with path.open("r", encoding="utf-8", errors="replace") as file:
        head = file.readline().rstrip("\n").split("\t")
    return any(name in USUAL[what] for name in head for what in ("image", "text") if name not in ("image", "jpg", "png"))


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one table; raise DataError when it has no header with the columns that ``kind`` needs."""
    if len(columns.separator or ",") > 1:
        raise DataError(f"--separator {columns.separator}: expected one character, or tab")
    separator = columns.separator or ("\t" if path.suffix == ".tsv" else ",")
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter=separator))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}; save it as UTF-8") from error
    if not rows:
        raise DataError(f"{path}: the table is empty; its first line must name the columns")
    return [TableShard(path, name, rows, choose(path, rows[0], kind, columns), columns.root)]


class TableShard(Shard):
    """One table, held in memory: file names and captions are small."""

    def __init__(self, path: Path, name: str, rows: list[list[str]], chosen: Chosen, root: Path | None):
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

    def keys(self) -> list[str]:
        return [self._key(index) for index in range(len(self))]

    def _key(self, index: int) -> str:
        return self._cell(index, self._chosen.key) or self._cell(index, self._chosen.image) or str(index)

    def _file(self, index: int) -> bytes:
        return read_file(self._root, self._cell(index, self._chosen.image), f"{self.path}, row {index}")

    def __getitem__(self, index: int) -> Row:
        chosen = self._chosen
        if len(self._rows[index]) != len(self._header):
            raise BadRow(f"has {len(self._rows[index])} columns; expected {len(self._header)} as in the header")
        image = None if chosen.image is None else self._file(index)
        texts = () if chosen.text is None else sentences(self._cell(index, chosen.text))
        label = self._cell(index, chosen.label)
        return Row(self._key(index), image, texts, int(label) if label is not None and label.isdecimal() else label)
