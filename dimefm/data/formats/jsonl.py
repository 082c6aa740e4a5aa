"""JSON lines: one object a line, with a text (``text``, ...), an image (``filepath``, ...) or both.

A line that is a JSON string is a text. ``.jsonl.gz`` is unpacked in blocks as lines are read. Image
files are looked up under ``--dataroot``, else in the folder of the file, and may not leave that
folder; an image may also be base64. A row without a key has the name of its image file as key, for
images and for texts, else its number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dimefm.data.cells import image_of, is_base64
from dimefm.data.columns import LONGEST_NAME, USUAL, sentences
from dimefm.data.lines import LONGEST_TEXT, Lines, refuse_returns
from dimefm.data.rows import Columns, Row, Shard, readable
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow

SUFFIXES = (".jsonl", ".jsonl.gz")
KINDS = frozenset({"image", "text"})

# Bytes of a line that may hold an image in base64: JSON takes up to 30 times as many in memory.
LONGEST_IMAGE = 32 << 20


def claims(path: Path) -> bool:
    """Every ``.jsonl`` file is JSON lines."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one file of JSON lines."""
    return [JsonlShard(path, name, kind, columns)]


class JsonlShard(Divisible):
    """One file of JSON lines; fields are looked up row by row, as they may differ."""

    def __init__(self, path: Path, name: str, kind: str, columns: Columns):
        super().__init__(path, name)
        self._lines = Lines(path, LONGEST_TEXT if kind == "text" else LONGEST_IMAGE)
        refuse_returns(path, self._lines.source)
        self._kind = kind
        self._columns = columns
        self._root = columns.root or path.parent

    def __len__(self) -> int:
        return len(self._lines)

    def keys_of(self, rows: range) -> list[str]:
        return [self._key(self._parse_or_empty(index), index) for index in rows]

    def former_keys_of(self, rows: range) -> list[str] | None:
        if self._kind != "text":
            return None
        keys: list[str] = []
        for index in rows:
            value = self._field(self._parse_or_empty(index), "key")
            keys.append(str(index) if value is None else readable(str(value)))
        return keys

    def _parse(self, index: int) -> dict:
        """Return the fields of a row; raise BadRow when its line has none."""
        line = self._lines[index]
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRow(f"is not UTF-8: {error.reason} at byte {error.start}") from error
        except (ValueError, RecursionError) as error:
            raise BadRow(f"is not JSON: {error}") from error
        if isinstance(value, str):
            return {"text": value}
        if not isinstance(value, dict):
            raise BadRow(f"is a JSON {type(value).__name__}; expected an object or a string")
        return value

    def _parse_or_empty(self, index: int) -> dict:
        """Return the fields of a row, none when its line has none."""
        try:
            return self._parse(index)
        except BadRow:
            return {}

    def _field(self, fields: dict, what: str) -> Any:
        """Return the value of the column for ``what``, None when the row has none."""
        asked = getattr(self._columns, what)
        names = (asked,) if asked else USUAL[what]
        for name in names:
            if name in fields:
                return fields[name]
        return None

    def _key(self, fields: dict, index: int) -> str:
        value = self._field(fields, "key")
        if value is None:
            value = _file_name(self._field(fields, "image"))
        if value is None:
            return str(index)
        return readable(str(value))

    def labels(self) -> list:
        """Return the label of every row, or None."""
        rows = range(len(self))
        return [self._field(self._parse_or_empty(index), "label") for index in rows]

    def __getitem__(self, index: int) -> Row:
        fields = self._parse(index)
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if self._kind != "text":
            cell = self._field(fields, "image")
            image = image_of(cell, self._root, f"{self.path}, row {index}")
        text = self._field(fields, "text")
        has_text = self._kind == "pair" and text is not None
        if self._kind == "text" or has_text:
            texts = sentences(text)
        key = self._key(fields, index)
        label = self._field(fields, "label")
        return Row(key, image, texts, label)


def _file_name(value: object) -> str | None:
    """Return the name of the image file in a field, None when the field holds no name."""
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value:
        return None
    is_name = len(value) <= LONGEST_NAME and not is_base64(value)
    return value if is_name else None
