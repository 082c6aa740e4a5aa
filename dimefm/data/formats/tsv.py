"""DIME-FM's TSV: ``key <tab> value <newline>`` in UTF-8, with a ``.lineidx`` of decimal byte
offsets next to it.

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
import os
from pathlib import Path

import numpy as np

from dimefm.data.rows import Columns, Row, Shard
from dimefm.errors import BadRow, DataError

SUFFIXES = (".tsv",)
KINDS = frozenset({"image", "text"})


def claims(path: Path) -> bool:
    """A ``.tsv`` is DIME-FM's when it has an index or its first line has two columns and
    no table header.
    """
    if index_path(path).exists():
        return True
    with path.open("rb") as file:
        head = file.readline(1 << 16).rstrip(b"\r\n").split(b"\t")
    return len(head) == 2 and not any(
        name in (b"filepath", b"title", b"text", b"caption") for name in head
    )


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one TSV; raise DataError when its index does not fit it."""
    if kind == "pair":
        raise DataError(
            f"{path}: a DIME-FM TSV holds images or captions, not pairs; use a table, tar or"
            " Parquet of pairs"
        )
    return [TsvShard(path, name, kind)]


def index_path(path: Path) -> Path:
    """Return the path of the line index: the last extension replaced (``a.feat.tsv`` has
    ``a.feat.lineidx``).
    """
    return path.with_suffix(".lineidx")


def read_offsets(path: Path) -> np.ndarray:
    """Return int64 byte offsets [rows + 1] of a TSV: from its index, or by scanning when there is
    none.

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
            f"{index}: expected one decimal byte offset per line ({error}); write the index anew"
        ) from error
    ends = np.append(starts, size)
    if len(starts) and (starts[0] != 0 or (np.diff(ends) <= 0).any()):
        row = 0 if starts[0] else int(np.flatnonzero(np.diff(ends) <= 0)[0])
        raise DataError(
            f"{index}, row {row}: offset {ends[row]} does not fit {path.name} of {size} bytes; "
            "remove the index and it is rebuilt from the file"
        )
    if not len(starts) and size:
        raise DataError(
            f"{index}: the index is empty but {path.name} has {size} bytes; remove the index to"
            " rebuild it"
        )
    return ends


def _scan(path: Path, size: int) -> np.ndarray:
    if not size:
        return np.zeros(1, dtype=np.int64)
    newlines = (
        np.flatnonzero(np.memmap(path, dtype=np.uint8, mode="r") == ord("\n")).astype(np.int64) + 1
    )
    ends = np.concatenate([[0], newlines])
    return ends if ends[-1] == size else np.append(ends, size)


class LineFile:
    """Random access to the lines of a file by byte offsets [rows + 1]; one open handle per
    process.
    """

    def __init__(self, path: Path, offsets: np.ndarray):
        self.path = path
        self.offsets = offsets
        self._handle: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def line(self, row: int) -> bytes:
        """Return line ``row`` without its newline; raise DataError if the index is off."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        raw = os.pread(self._descriptor(), end - start, start)
        body = raw.removesuffix(b"\n")
        cut_short = len(body) == len(raw) and row + 1 < len(self)
        if len(raw) < end - start or cut_short or b"\n" in body:
            raise DataError(
                f"{self.path}, row {row}: bytes {start} to {end} are not one line, so"
                f" {index_path(self.path).name} does not fit the file; remove the index and it is"
                " rebuilt from the file"
            )
        return body

    def _descriptor(self) -> int:
        process = os.getpid()
        if self._handle is None or self._handle[0] != process:
            self._handle = (process, os.open(self.path, os.O_RDONLY))
        return self._handle[1]

    def __getstate__(self):
        return {**self.__dict__, "_handle": None}

    def __del__(self):
        if self._handle is not None and self._handle[0] == os.getpid():
            os.close(self._handle[1])


class TsvShard(Shard):
    """One TSV; ``kind`` decides how the second column is read."""

    def __init__(self, path: Path, name: str, kind: str):
        super().__init__(path, name)
        self.kind = kind
        self.lines = LineFile(path, read_offsets(path))
        self.kept = self._linelist()

    def _linelist(self) -> np.ndarray | None:
        path = self.path.with_suffix(".linelist")
        if not path.exists():
            return None
        try:
            kept = np.array(path.read_text().split(), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: expected one row number per line ({error}); correct the list"
            ) from error
        if len(kept) and (
            kept.min() < 0 or kept.max() >= len(self.lines) or (np.diff(kept) <= 0).any()
        ):
            raise DataError(
                f"{path}: expected ascending row numbers below {len(self.lines)}; correct the list"
            )
        return kept

    def __len__(self) -> int:
        return len(self.lines) if self.kept is None else len(self.kept)

    def _line_number(self, index: int) -> int:
        return index if self.kept is None else int(self.kept[index])

    def keys(self) -> list[str]:
        return [self._key(self._line_number(index)) for index in range(len(self))]

    def _key(self, row: int) -> str:
        start, end = self.lines.offsets[row], self.lines.offsets[row + 1]
        head = os.pread(self.lines._descriptor(), min(int(end - start), 256), int(start))
        if b"\t" not in head:
            head = self.lines.line(row)
        return head.split(b"\t", 1)[0].rstrip(b"\n").decode("utf-8", "replace")

    def __getitem__(self, index: int) -> Row:
        line = self.lines.line(self._line_number(index))
        key, tab, value = line.partition(b"\t")
        if not tab:
            raise BadRow("has no second column; expected key, tab, value")
        name = key.decode("utf-8", "replace")
        if self.kind == "text":
            try:
                return Row(name, texts=captions(value.decode("utf-8")))
            except UnicodeDecodeError as error:
                raise BadRow(f"is not UTF-8: {error.reason} at byte {error.start}") from error
        image, _, label = value.removesuffix(b"\r").partition(b"\t")
        try:
            return Row(name, image=base64.b64decode(image, validate=True), label=_label(label))
        except binascii.Error as error:
            raise BadRow(f"second column is not base64: {error}") from error


def _label(raw: bytes) -> int | str | None:
    text = raw.decode("utf-8", "replace").strip()
    return int(text) if text.isdecimal() else text or None


def captions(value: str) -> tuple[str, ...]:
    """Return the captions of one text value.

    Forms: ``{"captions": [..] | ".."}``, ``{"caption": [..] | ".."}``, ``{"tags": [name]}`` and
    ``{"task": "classification", "class_name": name}`` (one plain prompt), a list (its first
    element, in any form), a JSON string, and anything else, which is the sentence itself (``1984``
    and ``null`` are sentences too). ``[unused0]`` reads ``person``. Deviation: the release draws
    one of 81 prompts at random for a class name; a cached feature must belong to one fixed
    sentence, so the prompt here is always "a photo of a NAME.".
    """
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = value
    found = _captions_of(parsed)
    sentences = found if found is not None else [value]
    return tuple(sentence.replace("[unused0]", "person") for sentence in sentences)


def _captions_of(parsed: object) -> list[str] | None:
    """Return the captions of a parsed JSON value, or None when the text is to be taken as it
    stands.
    """
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
            value = parsed[field]
            sentences = [value] if isinstance(value, str) else value
            if (
                not isinstance(sentences, list)
                or not sentences
                or not all(isinstance(s, str) for s in sentences)
            ):
                raise BadRow(f"'{field}' holds no sentence")
            return sentences
    names = parsed.get("tags") or parsed.get("class_name")
    name = names[0] if isinstance(names, list) and names else names
    if isinstance(name, str):
        return [f"a photo of a {name.replace(',', '').replace('+', ' ')}."]
    raise BadRow(
        "is a JSON object without captions, caption, tags or class_name (found:"
        f" {', '.join(parsed) or 'nothing'})"
    )
