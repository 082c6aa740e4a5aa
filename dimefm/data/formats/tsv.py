"""DIME-FM's TSV: ``key <tab> value <newline>`` in UTF-8, with an index of its lines.

The index, a file of the same name that ends in ``.lineidx``, has a decimal byte offset a line.

Image values are base64 of an encoded image file; text values are captions in any form of
:func:`captions`. An optional ``.linelist`` names the row numbers to keep. Rows are cut at the
offsets as bytes, so a carriage return inside a caption changes nothing; an index that does not fit
its file is an error and never a shift.

Source of the format: DIME-FM (ICCV 2023), released Training/datasets/tsv_file.py and
tsv.py:231-282.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

import numpy as np

from dimefm.data.pread import PreadFile
from dimefm.data.rows import Columns, Row, Shard
from dimefm.errors import BadRow, DataError

SUFFIXES = (".tsv",)
KINDS = frozenset({"image", "text"})
HEADER = {b"filepath", b"title", b"text", b"caption"}  # names in the first line of a table
HEAD = 256  # bytes of a line that are read for its key
PERSON = ("[unused0]", "person")  # what DIME-FM's captions call a name, and what it reads


def claims(path: Path) -> bool:
    """A ``.tsv`` is DIME-FM's when it has an index, or else two columns and no table header."""
    if index_path(path).exists():
        return True
    with path.open("rb") as file:
        head = file.readline(1 << 16).rstrip(b"\r\n").split(b"\t")
    return len(head) == 2 and HEADER.isdisjoint(head)


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one TSV; raise DataError when its index does not fit it."""
    if kind == "pair":
        raise DataError(
            f"{path}: a DIME-FM TSV holds images or captions, not pairs. Fix: use a table, tar or"
            " Parquet of pairs"
        )
    return [TsvShard(path, name, kind)]


def index_path(path: Path) -> Path:
    """Return the path of the line index of a TSV: ``a.feat.tsv`` has ``a.feat.lineidx``."""
    return path.with_suffix(".lineidx")


def read_offsets(path: Path) -> np.ndarray:
    """Return the byte offsets of a TSV's lines and its end, int64 [rows + 1].

    They are read from its index; without one the file is scanned.

    Raises DataError when the index does not fit the file (wrong start, order, or end).
    """
    size = path.stat().st_size
    index = index_path(path)
    if not index.exists():
        return _scan(path, size)
    try:
        starts = np.array(index.read_text().split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{index}: expected one decimal byte offset per line ({error}). Fix: remove the index"
            " and it is rebuilt from the file"
        ) from error
    if not len(starts) and size:
        raise DataError(
            f"{index}: the index is empty but {path.name} has {size} bytes. Fix: remove the index"
            " to rebuild it"
        )
    offsets = np.append(starts, size)
    row = _first_misplaced(offsets)
    if row is not None:
        raise DataError(
            f"{index}, row {row}: offset {offsets[row]} does not fit {path.name} of {size} bytes. "
            "Fix: remove the index and it is rebuilt from the file"
        )
    return offsets


def _first_misplaced(offsets: np.ndarray) -> int | None:
    """Return the first row that does not begin where it may, None when all fit."""
    if len(offsets) == 1:  # a file without rows
        return None
    if offsets[0] != 0:
        return 0
    empty = np.flatnonzero(np.diff(offsets) <= 0)
    return int(empty[0]) if len(empty) else None


def _scan(path: Path, size: int) -> np.ndarray:
    """Return the byte offsets of the lines of a file and its end, int64 [rows + 1]."""
    if not size:
        return np.zeros(1, dtype=np.int64)
    text = np.memmap(path, dtype=np.uint8, mode="r")
    newlines = np.flatnonzero(text == ord("\n")).astype(np.int64)
    offsets = np.concatenate([[0], newlines + 1])
    if offsets[-1] != size:  # the last line has no newline
        offsets = np.append(offsets, size)
    return offsets


class LineFile:
    """Random access to the lines of a file by byte offsets [rows + 1]."""

    def __init__(self, path: Path, offsets: np.ndarray):
        self.path = path
        self.offsets = offsets
        self._file = PreadFile(path)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def line(self, row: int) -> bytes:
        """Return line ``row`` without its newline; raise DataError if the index is off."""
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1])
        raw = self._file.read(start, end - start)
        body = raw.removesuffix(b"\n")
        is_last = row + 1 == len(self)
        lacks_newline = len(body) == len(raw) and not is_last
        if len(raw) < end - start or lacks_newline or b"\n" in body:
            raise DataError(
                f"{self.path}, row {row}: bytes {start} to {end} are not one line, so"
                f" {index_path(self.path).name} does not fit the file. Fix: remove the index and it"
                " is rebuilt from the file"
            )
        return body

    def head(self, row: int) -> bytes:
        """Return the first bytes of line ``row``, at most HEAD."""
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1])
        return self._file.read(start, min(end - start, HEAD))


class TsvShard(Shard):
    """One TSV; ``kind`` decides how the second column is read."""

    def __init__(self, path: Path, name: str, kind: str):
        super().__init__(path, name)
        self.kind = kind
        self.lines = LineFile(path, read_offsets(path))
        self.kept = self._linelist()

    def _linelist(self) -> np.ndarray | None:
        """Return the row numbers of the ``.linelist``, None when there is none."""
        path = self.path.with_suffix(".linelist")
        if not path.exists():
            return None
        try:
            kept = np.array(path.read_text().split(), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: expected one row number per line ({error}). Fix: correct the list"
            ) from error
        is_inside = not len(kept) or (kept.min() >= 0 and kept.max() < len(self.lines))
        is_ascending = (np.diff(kept) > 0).all()
        if not (is_inside and is_ascending):
            raise DataError(
                f"{path}: expected ascending row numbers below {len(self.lines)}. Fix: correct the"
                " list"
            )
        return kept

    def __len__(self) -> int:
        if self.kept is None:
            return len(self.lines)
        return len(self.kept)

    def _line_number(self, index: int) -> int:
        if self.kept is None:
            return index
        return int(self.kept[index])

    def keys(self) -> list[str]:
        return [self._key(self._line_number(index)) for index in range(len(self))]

    def _key(self, row: int) -> str:
        head = self.lines.head(row)
        if b"\t" not in head:  # the key is longer, or there is none
            head = self.lines.line(row)
        key, _, _ = head.partition(b"\t")
        return key.rstrip(b"\n").decode("utf-8", "replace")

    def __getitem__(self, index: int) -> Row:
        line = self.lines.line(self._line_number(index))
        key, tab, value = line.partition(b"\t")
        if not tab:
            raise BadRow("has no second column; expected key, tab, value")
        name = key.decode("utf-8", "replace")
        if self.kind == "text":
            return _text_row(name, value)
        return _image_row(name, value)


def _text_row(name: str, value: bytes) -> Row:
    """Return the row of a second column that holds captions."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8: {error.reason} at byte {error.start}") from error
    return Row(name, texts=captions(text))


def _image_row(name: str, value: bytes) -> Row:
    """Return the row of a second column that holds an image in base64, with a label or without."""
    encoded, _, label = value.removesuffix(b"\r").partition(b"\t")
    try:
        image = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise BadRow(f"second column is not base64: {error}") from error
    return Row(name, image=image, label=_label(label))


def _label(raw: bytes) -> int | str | None:
    """Return the label of a third column, None for an empty one."""
    text = raw.decode("utf-8", "replace").strip()
    if not text:
        return None
    return int(text) if text.isdecimal() else text


def captions(value: str) -> tuple[str, ...]:
    """Return the captions of one text value.

    Forms: ``{"captions": [..] | ".."}``, ``{"caption": [..] | ".."}``, ``{"tags": [name]}`` and
    ``{"task": "classification", "class_name": name}`` (one plain prompt), a list (its first
    element, in any form), a JSON string, and anything else, which is the caption itself (``1984``
    and ``null`` are captions too). ``[unused0]`` reads ``person``. Deviation: the release draws
    one of 81 prompts at random for a class name; a cached embedding must belong to one fixed
    caption, so the prompt here is always "a photo of a NAME.".
    """
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = value
    texts = _captions_of(parsed)
    if texts is None:
        texts = [value]
    return tuple(text.replace(*PERSON) for text in texts)


def _captions_of(parsed: object) -> list[str] | None:
    """Return the captions of a parsed JSON value, None when the text itself is the caption."""
    if isinstance(parsed, str):
        return [parsed]
    if isinstance(parsed, list):
        if not parsed:
            raise BadRow("holds an empty list of captions")
        return _captions_of(parsed[0])
    if not isinstance(parsed, dict):
        return None
    for field in ("captions", "caption", "text"):
        if field in parsed:
            return _texts_of(parsed[field], field)
    names = parsed.get("tags") or parsed.get("class_name")
    name = names[0] if isinstance(names, list) and names else names
    if isinstance(name, str):
        plain_name = name.replace(",", "").replace("+", " ")
        return [f"a photo of a {plain_name}."]
    raise BadRow(
        "is a JSON object without captions, caption, tags or class_name (found:"
        f" {', '.join(parsed) or 'nothing'})"
    )


def _texts_of(value: object, field: str) -> list[str]:
    """Return the captions of a field: a string or a list of strings; raise BadRow for others."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return value
    raise BadRow(f"'{field}' holds no sentence")
