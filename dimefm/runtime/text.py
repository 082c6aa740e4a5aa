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
