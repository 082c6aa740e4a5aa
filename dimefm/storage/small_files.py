"""Read the small JSON and TOML files that come with data: bounded, and one reason for each fault.

Such a file may come from a stranger. It is read only when it is a regular file of at most
``MOST_BYTES``; what it holds may be nested ``MOST_DEPTH`` deep and have whole numbers of 64 bits.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 16 << 20
MOST_DEPTH = 48  # tables and lists inside one another
MOST_DIGITS = 20  # of a whole number
LARGEST = 2**64  # whole numbers are smaller
LONG_KEY = re.compile(rf"""(?:\.\s*+["']?[\w-]++["']?\s*+){{{MOST_DEPTH}}}""")
"""A dotted TOML key of so many parts, which tomllib takes quadratic time to read."""


class Unreadable(ValueError):
    """A small file cannot be read; the message is the reason, without the file's name."""


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a small file, without a byte order mark.

    Raises OSError when it cannot be opened, and Unreadable when it is no regular file, too large,
    or not UTF-8.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("it is no regular file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise Unreadable(f"it has more than {most_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not UTF-8: byte {error.start:,}") from error


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Return what a small JSON file holds; raise OSError or Unreadable as :func:`read_text` does,
    and Unreadable for what :func:`parse_json` refuses.
    """
    return parse_json(read_text(path, most_bytes))


def read_toml(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Return what a small TOML file holds; raises as :func:`read_json` does."""
    return parse_toml(read_text(path, most_bytes))


def parse_json(text: str, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """Return the value of a JSON text.

    Raises Unreadable when the text is no JSON, is nested too deeply, or has too large a number.
    """
    with _reasons("JSON"):
        value = json.loads(text, object_hook=object_hook, parse_int=_whole_number)
    _check(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises as :func:`parse_json` does."""
    with _reasons("TOML"):
        if LONG_KEY.search(text):
            raise Unreadable(f"it is nested more than {MOST_DEPTH} deep")
        value = tomllib.loads(text)
    _check(value)
    return value


@contextlib.contextmanager
def _reasons(language: str) -> Iterator[None]:
    """Turn whatever a parser raises into Unreadable."""
    try:
        yield
    except Unreadable:
        raise
    except RecursionError as error:
        raise Unreadable(f"it is nested more than {MOST_DEPTH} deep") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        if "integer string conversion" in reason:
            reason = f"a whole number has more than {MOST_DIGITS} digits"
        raise Unreadable(f"it is no {language}: {reason[:200]}") from error


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS + 1:
        raise Unreadable(f"a whole number has {len(digits):,} digits, expected 64 bits")
    return int(digits)


def _check(value: Any) -> None:
    """Raise Unreadable for a value that is nested too deeply, or has too large a whole number."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for container in level:
            parts = container.values() if isinstance(container, dict) else container
            if isinstance(container, dict | list | tuple):
                inner += _containers(parts)
            elif isinstance(container, int):
                _check_number(container)
        if not inner:
            return
        level = inner
    raise Unreadable(f"it is nested more than {MOST_DEPTH} deep")


def _containers(parts: Any) -> list[Any]:
    """Return the tables and lists among the parts of one; check the numbers among them."""
    containers = []
    for part in parts:
        if isinstance(part, dict | list | tuple):
            containers.append(part)
        elif isinstance(part, int):
            _check_number(part)
    return containers


def _check_number(number: int) -> None:
    if abs(number) >= LARGEST:
        raise Unreadable("a whole number is too large, expected 64 bits")
