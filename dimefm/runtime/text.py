"""Short texts for messages."""

from __future__ import annotations

from collections.abc import Sequence


def first_few(items: Sequence[object], most: int) -> str:
    """Return at most ``most`` items, comma-separated, and the number left: "a, b and 3 more"."""
    text = ", ".join(str(item) for item in items[:most])
    left = len(items) - most
    if left > 0:
        text += f" and {left} more"
    return text


def readable(name: str) -> str:
    """Return a name as text that UTF-8 can hold.

    Bytes of another encoding, which Python reads as lone surrogates, become ``\\udcNN``.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
