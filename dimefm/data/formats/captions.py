"""A list of captions: each line has the name of an image, or a number, before its sentence.

The forms that are recognized, from the first lines of a file::

    1000268201.jpg#0<tab>A child climbs the stairs .      Flickr8k.token.txt, Flickr30k's results
    1000268201.jpg,"A child , in pink , climbs ."         captions.txt, with or without a header
    1000268201.jpg A child climbs the stairs .
    17<tab>A child climbs the stairs.                     any numbers
    1. A child climbs the stairs.                         numbers that count the lines

The key of a sentence is the name with ``#`` and the number of the caption, as in ``photo.jpg#0``,
or the number alone.
"""

from __future__ import annotations

import csv
import functools
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dimefm.data.image_files import IMAGE_SUFFIXES
from dimefm.data.lines import UTF8_MARK, Lines, refuse_returns
from dimefm.data.rows import Columns, Row, Shard
from dimefm.data.subshards import Divisible
from dimefm.errors import BadRow, DataError
from dimefm.storage.reading import patiently

SUFFIXES = (".txt", ".token", ".txt.gz")
KINDS = frozenset({"text"})
HEAD = 16_384  # bytes that tell the form
LEAST_LINES = 2  # that are enough to tell it
MOST_OTHERS = 0.2  # of the first lines that may have another form
HEADERS = (
    "image",
    "image_name",
    "img",
    "filename",
    "file_name",
    "file",
    "filepath",
    "image_id",
    "id",
    "key",
)

ENDINGS = "|".join(re.escape(suffix[1:]) for suffix in IMAGE_SUFFIXES)
NAMED = re.compile(  # name, number of the caption, separator, sentence
    rf"\s*\"?([^\t,|;\"]{{1,400}}?\.(?:{ENDINGS}))(#\d{{1,9}})?\"?(?:([\t,|;])[ ]*(.*))?",
    re.IGNORECASE,
)
NAMED_WITH_BLANK = re.compile(
    rf"\s*([^\s,|;]{{1,400}}?\.(?:{ENDINGS}))(#\d{{1,9}})?([ ]+)(.*)", re.IGNORECASE
)
WITH_NUMBER = re.compile(r"\s*(\S{1,400}?)(#\d{1,9})(\t+)[ ]*(.*)")  # 1000092795#0
NUMBERED = re.compile(r"\s*(\d{1,18})\t+[ ]*([^\t]+)")
COUNTED = re.compile(r"\s*(\d{1,18})(?:[):;|]\s*|\.(?!\d)\s*|,(?!\d{3}\b)\s*|\s+)(\S.*)")
NUMBERS = re.compile(r"[\d\s,.;|+-]*")
MAY_BE_NAMED = re.compile(r"\.\w")  # an ending
MAY_BE_NUMBERED = re.compile(r"\n\s*\d")

Parsed = tuple[str, str]  # key, sentence
Parse = Callable[[str], Parsed | None]


def claims(path: Path) -> bool:
    """Tell from the first lines whether each has a name or a number before its sentence."""
    return is_caption_list(path)


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one list of captions; raise DataError when its lines have no known form."""
    parse = _form_of(_head_of(path), path)
    if parse is None:
        raise DataError(
            f"{path}: its lines do not begin with the name of an image or a number. Fix: pass"
            " --input-format text for whole lines"
        )
    return [CaptionShard(path, name, parse)]


def is_caption_list(path: Path) -> bool:
    """Tell from the first lines of a text file whether it is a list of captions.

    Raises DataError for lines of names and numbers without sentences, and of several columns.
    """
    status = path.stat()
    return _is_caption_list(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _is_caption_list(path: Path, size: int, mtime_ns: int) -> bool:
    return _form_of(_head_of(path), path) is not None


def _head_of(path: Path) -> list[str]:
    """Return the first lines of a text file that are not blank.

    There are none when it cannot be read, or when no line can be one of a list of captions.
    """
    try:
        raw = patiently(lambda: _read_head(path), path)
    except (OSError, EOFError, zlib.error):  # opening the shard says so
        return []
    lines = raw.removeprefix(UTF8_MARK).decode("utf-8", "replace").splitlines()
    if len(raw) == HEAD:
        lines = lines[:-1]  # it may be cut
    if _are_plain(lines):
        return []
    return [line for line in lines if line.strip()]


def _are_plain(lines: list[str]) -> bool:
    """Tell quickly whether no line has a name, a number at its start, or columns.

    There may be many thousands of files, and patterns of names are slow.
    """
    text = "\n" + "\n".join(lines)
    if "\t" in text or "#" in text:
        return False
    return not (MAY_BE_NAMED.search(text) or MAY_BE_NUMBERED.search(text))


def _read_head(path: Path) -> bytes:
    if path.suffix == ".gz":
        with gzip.open(path) as packed:
            return packed.read(HEAD)
    with path.open("rb") as file:
        return file.read(HEAD)


def _form_of(lines: list[str], path: Path) -> Parse | None:
    """Return what parses a line, None for plain sentences."""
    if len(lines) < LEAST_LINES:
        return None
    body = lines[1:] if _is_header(lines[0]) else lines
    for parse in (_named, _numbered):
        parsed = _nearly_all(parse, body)
        if parsed:
            _refuse_without_sentences(parsed, path)
            return parse
    if _counts_lines(body):
        return _counted
    tabs = body[0].count("\t") if body else 0
    if tabs and len(body) > LEAST_LINES and all(line.count("\t") == tabs for line in body):
        raise DataError(
            f"{path}: each line has {tabs + 1} columns with tabs between them, expected a"
            " sentence. Fix: name the columns in a first line and save it as .tsv, or pass"
            " --input-format text for whole lines"
        )
    return None


def _is_header(line: str) -> bool:
    first = re.split(r"[\t,|;]", line)[0]
    return first.strip().strip('"').casefold() in HEADERS


def _nearly_all(parse: Parse, lines: list[str]) -> list[Parsed]:
    """Return the lines that ``parse`` knows when nearly all are, else nothing."""
    parsed = []
    others = 0
    for line in lines:
        one = parse(line)
        if one is not None:
            parsed.append(one)
            continue
        others += 1
        if others > MOST_OTHERS * len(lines):
            return []
    return parsed


def _refuse_without_sentences(parsed: list[Parsed], path: Path) -> None:
    """Raise DataError when names or numbers are followed by nothing, or by numbers alone."""
    sentences = [sentence for _, sentence in parsed]
    if all(NUMBERS.fullmatch(sentence) for sentence in sentences):
        raise DataError(
            f"{path}: its lines are names and numbers, no sentences. Fix: name the file that holds"
            " the sentences, or pass --input-format text for whole lines"
        )


def _counts_lines(lines: list[str]) -> bool:
    """Tell whether the lines begin with numbers that follow one another."""
    if len(lines) <= LEAST_LINES:
        return False
    numbers = []
    for line in lines:
        match = COUNTED.fullmatch(line)
        if match is None:
            return False
        numbers.append(int(match[1]))
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _named(line: str) -> Parsed | None:
    match = NAMED.fullmatch(line) or NAMED_WITH_BLANK.fullmatch(line) or WITH_NUMBER.fullmatch(line)
    if match is None:
        return None
    name, number, separator, sentence = match.groups()
    sentence = sentence or ""
    if separator in (",", ";", "|"):
        sentence = _unquoted(sentence)
        counted = re.match(r"\s*(\d{1,4})\s*\|\s*(.*)", sentence) if separator == "|" else None
        if counted is not None:  # Flickr30k: name | number | sentence
            number = f"#{counted[1]}"
            sentence = counted[2]
    return f"{name.strip()}{number or ''}", sentence.strip()


def _unquoted(cell: str) -> str:
    """Return the text of a cell of CSV; a cell without quotes may hold commas."""
    if not cell.startswith('"'):
        return cell
    try:
        (cells,) = csv.reader([cell])
    except (csv.Error, ValueError):
        return cell
    return cells[0] if len(cells) == 1 else cell


def _numbered(line: str) -> Parsed | None:
    match = NUMBERED.fullmatch(line)
    return None if match is None else (match[1], match[2].strip())


def _counted(line: str) -> Parsed | None:
    match = COUNTED.fullmatch(line)
    return None if match is None else (match[1], match[2].strip())


class CaptionShard(Divisible):
    """One list of captions.

    ``parse`` gives the key and the sentence of a line. Captions of one image are counted where
    the list does not.
    """

    def __init__(self, path: Path, name: str, parse: Parse):
        super().__init__(path, name)
        self._lines = Lines(path)
        refuse_returns(path, self._lines.source)
        self._parse = parse
        self._first = 0
        if len(self._lines) and _is_header(self._line(0)):
            self._first = 1
        self._numbers: np.ndarray | None = None
        if parse is _named:
            self._numbers = self._count()

    def _count(self) -> np.ndarray:
        """Return for each row how many captions of its image stand before it, int32."""
        counts: Counter[str] = Counter()
        numbers = np.zeros(len(self), dtype=np.int32)
        for row in range(len(self)):
            key = self._parsed(row)[0]
            numbers[row] = counts[key]
            counts[key] += 1
        return numbers

    def __len__(self) -> int:
        return len(self._lines) - self._first

    def _line(self, index: int) -> str:
        try:
            return self._lines[index].decode("utf-8", "replace")
        except BadRow:  # too long
            return ""

    def _parsed(self, row: int) -> Parsed:
        """Return key and sentence of a row; without a name the key is its number in the file."""
        line = self._line(row + self._first)
        parsed = self._parse(line)
        return (str(row), "") if parsed is None else parsed

    def keys_of(self, rows: range) -> list[str]:
        return [self._key(row) for row in rows]

    def _key(self, row: int) -> str:
        key = self._parsed(row)[0]
        if self._numbers is None or re.search(r"#\d+$", key):
            return key
        return f"{key}#{self._numbers[row]}"

    def __getitem__(self, index: int) -> Row:
        raw = self._lines[index + self._first]
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow(f"is not UTF-8: {error.reason} at byte {error.start}") from error
        parsed = self._parse(line)
        if parsed is None and line.strip():
            raise BadRow("has no name or number before its sentence, as other lines have")
        text = "" if parsed is None else parsed[1]
        return Row(self._key(index), texts=(text,))
