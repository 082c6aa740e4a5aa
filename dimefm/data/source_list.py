"""Data lists: text files that name the shards of a source, one a line, each with its weight."""

from __future__ import annotations

import math
import re
from pathlib import Path

from dimefm.errors import DataError

WEIGHT = re.compile(r"\s+weight=(\S*)$")  # may end a line


def read_list(path: Path) -> list[tuple[str, float]]:
    """Return the entries of a data list with their weights.

    A line is a path, which ``weight=NUMBER`` may follow (else 1); blank lines and lines that begin
    with ``#`` are skipped.

    Raises DataError when the list is not UTF-8, empty, names another list, or has a weight that is
    not a positive number.
    """
    entries: list[tuple[str, float]] = []
    for number, line in enumerate(_lines(path), 1):
        if line and not line.startswith("#"):
            entries.append(_entry(line, path, number))
    if not entries:
        raise DataError(f"{path}: the list is empty. Fix: write one shard path per line")
    for name, _ in entries:
        if name.endswith(".list"):
            raise DataError(
                f"{path}: names another list, {name}; a list names shards and folders only. Fix:"
                " name its shards, or give both lists as sources"
            )
    return entries


def _lines(path: Path) -> list[str]:
    """Return the lines of a data list without the white space around them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}), expected a list of paths."
            " Fix: save it as UTF-8, or name a shard without the ending .list"
        ) from error
    return [line.strip() for line in text.splitlines()]


def _entry(line: str, path: Path, number: int) -> tuple[str, float]:
    """Return (path, weight) of a line of a data list."""
    match = WEIGHT.search(line)
    if match is None:
        return line, 1.0
    name = line[: match.start()]
    text = match[1]
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < math.inf:
        raise DataError(
            f"{path}, line {number}: weight '{text}'; expected a positive number. Fix: write"
            f" e.g. {name} weight=2"
        )
    return name, weight
