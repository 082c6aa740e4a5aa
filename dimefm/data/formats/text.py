"""Plain text: one sentence a line, UTF-8.

The key of a line is its number, counted from 0. ``.txt.gz`` is unpacked in blocks as lines are
read.
"""

from __future__ import annotations

from pathlib import Path

from dimefm.data.formats.captions import is_caption_list
from dimefm.data.lines import Lines, refuse_returns
from dimefm.data.rows import Columns, Row, Shard
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow

SUFFIXES = (".txt", ".txt.gz")
KINDS = frozenset({"text"})


def claims(path: Path) -> bool:
    """Every ``.txt`` file is plain text but a list of captions."""
    return not is_caption_list(path)


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one text file."""
    return [TextShard(path, name)]


class TextShard(Divisible):
    """One text file."""

    def __init__(self, path: Path, name: str):
        super().__init__(path, name)
        self._lines = Lines(path)
        refuse_returns(path, self._lines.source)

    def __len__(self) -> int:
        return len(self._lines)

    def keys_of(self, rows: range) -> list[str]:
        return [str(index) for index in rows]

    def __getitem__(self, index: int) -> Row:
        try:
            text = self._lines[index].decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow(f"is not UTF-8: {error.reason} at byte {error.start}") from error
        return Row(str(index), texts=(text,))
