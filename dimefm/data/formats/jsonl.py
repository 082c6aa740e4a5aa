"""JSON lines: one object a line, with a sentence (``text``, ``caption``, ...) and/or an image file
(``filepath``, ...).

A line that is a JSON string is a sentence. ``.jsonl.gz`` is read into memory. Image files are
looked up under ``--dataroot``, else next to the file, and may not leave that folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dimefm.data.columns import USUAL, read_file, sentences
from dimefm.data.formats.text import Lines
from dimefm.data.rows import Columns, Row, Shard, readable
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow

SUFFIXES = (".jsonl", ".jsonl.gz")
KINDS = frozenset({"image", "text"})


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
        self._lines = Lines(path)
        self._kind = kind
        self._columns = columns
        self._root = columns.root or path.parent

    def __len__(self) -> int:
        return len(self._lines)

    def keys_of(self, rows: range) -> list[str]:
        return [self._key(self._parse(index, strict=False), index) for index in rows]

    def _parse(self, index: int, strict: bool = True) -> dict:
        try:
            value = json.loads(self._lines[index])
        except (ValueError, RecursionError) as error:
            if not strict:
                return {}
            raise BadRow(f"is not JSON: {error}") from error
        if isinstance(value, str):
            return {"text": value}
        if not isinstance(value, dict):
            if not strict:
                return {}
            raise BadRow(f"is a JSON {type(value).__name__}; expected an object or a string")
        return value

    def _field(self, fields: dict, what: str) -> Any:
        asked = getattr(self._columns, what)
        names = (asked,) if asked else USUAL[what]
        return next((fields[name] for name in names if name in fields), None)

    def _key(self, fields: dict, index: int) -> str:
        value = self._field(fields, "key")
        if value is None and self._kind != "text":
            value = self._field(fields, "image")
        return str(index) if value is None else readable(str(value))

    def labels(self) -> list:
        """Return the label of every row, or None."""
        return [
            self._field(self._parse(index, strict=False), "label") for index in range(len(self))
        ]

    def __getitem__(self, index: int) -> Row:
        fields = self._parse(index)
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if self._kind != "text":
            image = read_file(self._root, self._field(fields, "image"), f"{self.path}, row {index}")
        text = self._field(fields, "text")
        if self._kind == "text" or (self._kind == "pair" and text is not None):
            texts = sentences(text)
        return Row(self._key(fields, index), image, texts, self._field(fields, "label"))
