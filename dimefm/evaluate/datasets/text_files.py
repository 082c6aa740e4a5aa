"""Lines of the text files next to a dataset: read one by one, bounded, with their place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dimefm.errors import DataError

MARK = b"\xef\xbb\xbf"
MOST_BYTES = 1 << 30
LONGEST_LINE = 1 << 14
"""Bytes of a line; a class name, a template or a path is shorter."""


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, without their ends.

    Raises DataError, which names the line, for bytes that are not UTF-8, a NUL, or an endless line.
    """
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1:
                raw = raw.removeprefix(MARK)
            if len(raw) > LONGEST_LINE:
                raise DataError(
                    f"{path}, line {number}: more than {LONGEST_LINE:,} bytes. Fix: correct the"
                    " file, or fetch it again"
                )
            yield _text_of(raw, path, number)


def _text_of(raw: bytes, path: Path, number: int) -> str:
    try:
        line = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 text (byte {error.start} of the line). Fix: save it"
            " as UTF-8"
        ) from error
    if "\0" in line:
        raise DataError(
            f"{path}, line {number}: holds a NUL, so this is no text. Fix: fetch the file again"
        )
    return line
