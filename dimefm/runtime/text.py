"""Short texts for messages."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

GAP = "..."
"""Stands where the middle of a name was."""


def first_few(items: Sequence[object], most: int) -> str:
    """Return at most ``most`` items, comma-separated, and the number left: "a, b and 3 more"."""
    text = ", ".join(str(item) for item in items[:most])
    left = len(items) - most
    if left > 0:
        text += f" and {left} more"
    return text


def cut_in_the_middle(name: str, longest: int) -> str:
    """Return a name without its middle when it is longer than ``longest``."""
    if len(name) <= longest:
        return name
    kept = longest - len(GAP)
    end = kept // 2
    return name[: kept - end] + GAP + name[-end:]


def without_remedy(error: BaseException) -> str:
    """Return the message of an error without its remedy, for a message that has its own."""
    reason, _, _ = str(error).partition(". Fix: ")
    return reason


def shortened(text: str, most: int) -> str:
    """Return a text in one line of at most ``most`` characters, which ends with a whole word."""
    return textwrap.shorten(text, most, placeholder=" ...")


def readable(name: str) -> str:
    """Return a name as text that UTF-8 can hold.

    Bytes of another encoding, which Python reads as lone surrogates, become ``\\udcNN``.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def utf8_name(name: str) -> str:
    """Return the name of a file as what its bytes are in UTF-8, in any locale.

    Bytes of another encoding are lone surrogates.
    """
    if name.isascii():
        return name
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no name that the system gave
        return name


def file_key(name: str) -> str:
    """Return the name of a file as a key; bytes of another encoding become ``\\udcNN``."""
    return readable(utf8_name(name))


def system_name(text: str) -> str:
    """Return a name from a text in UTF-8 as the system takes it, in any locale."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    return text
