"""DIME-FM's TSV: ``key <tab> value <newline>`` in UTF-8, with an index of its lines.

The index, a file of the same name that ends in ``.lineidx``, has a decimal byte offset a line.

Image values are base64 of an encoded image file; text values are captions in any form of
:func:`captions`. An optional ``.linelist`` names the row numbers to keep. Rows are cut at the
offsets as bytes, so a carriage return inside a caption changes nothing; an index that does not fit
its file is an error and never a shift.

Conceptual Captions as published is a TSV of captions and URLs. It is read so, and its keys are the
URLs.

Source of the format: DIME-FM (ICCV 2023), released Training/datasets/tsv_file.py and
tsv.py:231-282.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np

from dimefm.data.cells import decode_base64
from dimefm.data.lines import (
    BLOCK,
    LONGEST_LINE,
    LONGEST_TEXT,
    UTF8_MARK,
    PlainBytes,
    line_offsets,
    read_exactly,
    refuse_other_encodings,
    refuse_returns,
)
from dimefm.data.rows import Columns, Row, Shard, label_of
from dimefm.errors import BadRow, DataError

SUFFIXES = (".tsv",)
KINDS = frozenset({"image", "text"})
HEADER = {b"filepath", b"title", b"text", b"caption"}  # names in the first line of a table
HEAD = 256  # bytes of a line that are read for its key
FIRST_LINE = 1 << 16  # bytes of it that are read to tell the format
SHORT_LINE = 4096  # bytes, on average; lines of images are longer
PROBED = 16  # lines that tell what the columns hold
URL = re.compile(rb"https?://\S+", re.IGNORECASE)
NUMBERS = 1 << 20  # of an index that are read at once
PERSON = ("[unused0]", "person")  # what DIME-FM's captions call a name, and what it reads


def claims(path: Path) -> bool:
    """A ``.tsv`` is DIME-FM's when it has an index, or else two columns and no table header."""
    if index_path(path).exists():
        return True
    with path.open("rb") as file:
        line = file.readline(FIRST_LINE).removeprefix(UTF8_MARK).rstrip(b"\r\n")
    cells = [cell.strip(b'"').lower() for cell in line.split(b"\t")]
    return len(cells) == 2 and HEADER.isdisjoint(cells)


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
        return line_offsets(PlainBytes(path))
    try:
        starts = _numbers(index)
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


def _numbers(path: Path) -> np.ndarray:
    """Return the numbers in a text file, int64; raise ValueError or OverflowError for others."""
    if not path.is_file():
        raise ValueError("it is no regular file")
    pieces = [np.empty(0, dtype=np.int64)]
    with path.open(encoding="utf-8") as file:
        while lines := list(itertools.islice(file, NUMBERS)):
            words = "".join(lines).split()
            pieces.append(np.array(words, dtype=np.int64))
    return np.concatenate(pieces)


def _first_misplaced(offsets: np.ndarray) -> int | None:
    """Return the first row that does not begin where it may, None when all fit."""
    if len(offsets) == 1:  # a file without rows
        return None
    if offsets[0] != 0:
        return 0
    empty = np.flatnonzero(np.diff(offsets) <= 0)
    return int(empty[0]) if len(empty) else None


class LineFile:
    """Random access to the lines of a file by byte offsets [rows + 1]."""

    def __init__(self, path: Path, offsets: np.ndarray, longest: int = LONGEST_LINE):
        self.path = path
        self.offsets = offsets
        self.longest = longest
        self.source = PlainBytes(path)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def line(self, row: int) -> bytes:
        """Return line ``row`` without its newline.

        Raises DataError if the index is off, BadRow for a line of more than ``longest`` bytes.
        """
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1])
        if end - start > self.longest:
            raise BadRow(f"has {end - start:,} bytes; at most {self.longest:,} of a line are read")
        raw = read_exactly(self.path, self.source, start, end)
        body = raw.removesuffix(b"\n")
        is_last = row + 1 == len(self)
        lacks_newline = len(body) == len(raw) and not is_last
        if lacks_newline or b"\n" in body:
            raise DataError(
                f"{self.path}, row {row}: bytes {start} to {end} are not one line, so"
                f" {index_path(self.path).name} does not fit the file. Fix: remove the index and it"
                " is rebuilt from the file"
            )
        return body.removeprefix(UTF8_MARK) if row == 0 else body

    def size(self, row: int) -> int:
        """Return the number of bytes of line ``row``."""
        return int(self.offsets[row + 1] - self.offsets[row])

    def raw_lines(self, row: int, end: int) -> bytes:
        """Return the lines from ``row`` to before ``end`` as they are in the file."""
        return read_exactly(self.path, self.source, int(self.offsets[row]), int(self.offsets[end]))

    def head(self, row: int) -> bytes:
        """Return the first bytes of line ``row``, at most HEAD."""
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1])
        raw = self.source.read(start, min(end - start, HEAD))
        return raw.removeprefix(UTF8_MARK) if row == 0 else raw


class TsvShard(Shard):
    """One TSV; ``kind`` decides how the second column is read."""

    def __init__(self, path: Path, name: str, kind: str):
        super().__init__(path, name)
        self.kind = kind
        longest = LONGEST_TEXT if kind == "text" else LONGEST_LINE
        self.lines = LineFile(path, read_offsets(path), longest)
        refuse_returns(path, self.lines.source)
        refuse_other_encodings(path, self.lines.source)
        self.kept = self._linelist()
        self._text_is_first = self._holds_urls()

    def _holds_urls(self) -> bool:
        """Tell whether the rows are captions and URLs, as those of Conceptual Captions.

        Raises DataError when the second column is URLs and the first one no captions.
        """
        firsts: list[bytes] = []
        for row in range(min(PROBED, len(self.lines))):
            first, _, second = self.lines.head(row).rstrip(b"\r\n").partition(b"\t")
            if not URL.fullmatch(second) or URL.fullmatch(first):
                return False
            firsts.append(first)
        if not firsts:
            return False
        sentences = sum(b" " in first.strip() for first in firsts)
        if self.kind == "text" and 2 * sentences > len(firsts):
            return True
        wanted = "captions" if self.kind == "text" else "images in base64"
        raise DataError(
            f"{self.path}: its second column holds URLs, expected {wanted}. Fix: fetch the images"
            " with img2dataset and pass the tars that it writes"
        )

    def _linelist(self) -> np.ndarray | None:
        """Return the row numbers of the ``.linelist``, None when there is none."""
        path = self.path.with_suffix(".linelist")
        if not path.exists():
            return None
        try:
            kept = _numbers(path)
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
        if self.kept is None:
            return self._all_keys()
        return [self._key(self._line_number(index)) for index in range(len(self))]

    def _all_keys(self) -> list[str]:
        """Return the keys of all lines; short lines are read many at a time."""
        keys: list[str] = []
        offsets = self.lines.offsets
        row = 0
        while row < len(self.lines):
            end = int(np.searchsorted(offsets, offsets[row] + BLOCK, side="right")) - 1
            are_short = end - row > BLOCK // SHORT_LINE
            if not are_short:
                keys.append(self._key(row))
                row += 1
                continue
            edges = (offsets[row : end + 1] - offsets[row]).tolist()
            block = self.lines.raw_lines(row, end)
            for start, stop in itertools.pairwise(edges):
                line = block[start:stop].removesuffix(b"\n")
                if row + start == 0:  # the first line of the file
                    line = line.removeprefix(UTF8_MARK)
                key, _ = self._columns(line)
                keys.append(key.decode("utf-8", "replace"))
            row = end
        return keys

    def _key(self, row: int) -> str:
        """Return the key of a line, the first bytes of one that is too long."""
        head = self.lines.head(row)
        is_cut = self._text_is_first or b"\t" not in head
        if is_cut and self.lines.size(row) <= self.lines.longest:
            head = self.lines.line(row)
        key, _ = self._columns(head)
        return key.rstrip(b"\n").decode("utf-8", "replace")

    def _columns(self, line: bytes) -> tuple[bytes, bytes | None]:
        """Return (key, value) of a line, and None for a value that is missing."""
        first, tab, second = line.partition(b"\t")
        if not tab:
            return first, None
        if self._text_is_first:
            return second.removesuffix(b"\r"), first
        return first, second

    def __getitem__(self, index: int) -> Row:
        line = self.lines.line(self._line_number(index))
        key, value = self._columns(line)
        if value is None:
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
    image = decode_base64(encoded, "second column")
    return Row(name, image=image, label=_label(label))


def _label(raw: bytes) -> int | str | None:
    """Return the label of a third column, None for an empty one."""
    text = raw.decode("utf-8", "replace").strip()
    if not text:
        return None
    return label_of(text)


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
    while isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    texts = _captions_of(parsed)
    if texts is None:
        texts = [value]
    return tuple(text.replace(*PERSON) for text in texts)


def _captions_of(parsed: object) -> list[str] | None:
    """Return the captions of a parsed JSON value, None when the text itself is the caption."""
    if isinstance(parsed, str):
        return [parsed]
    if isinstance(parsed, list):
        raise BadRow("holds an empty list of captions")
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
