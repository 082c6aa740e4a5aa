"""What a source holds besides its rows, so that everything in it is accounted for."""

from __future__ import annotations

from dataclasses import dataclass, field

from dimefm.runtime.text import first_few, readable

EXAMPLES = 3  # names that are kept of each reason
LONGEST_NAME = 80  # characters of a name in a message
MOST_REASONS = 12  # that a summary lists


@dataclass
class _Group:
    """What was skipped for one reason."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class Skipped:
    """Counts the files and members of a source that are no rows, by reason, with a few names."""

    def __init__(self):
        self._groups: dict[str, _Group] = {}

    def __len__(self) -> int:
        return sum(group.count for group in self._groups.values())

    def add(self, reason: str, name: str) -> None:
        """Count one more file or member."""
        group = self._groups.setdefault(reason, _Group())
        group.count += 1
        if len(group.examples) < EXAMPLES:
            group.examples.append(_short(name))

    def update(self, other: Skipped) -> None:
        """Add what ``other`` has counted."""
        for reason, more in other._groups.items():
            group = self._groups.setdefault(reason, _Group())
            group.count += more.count
            group.examples += more.examples[: EXAMPLES - len(group.examples)]

    def describe(self) -> str:
        """Return a human-readable list of one line: "3 files ending in .md (a.md, ...); ..."."""
        parts: list[str] = []
        for reason, group in self._groups.items():
            names = ", ".join(group.examples)
            if group.count > len(group.examples):
                names += ", ..."
            parts.append(f"{group.count:,} {reason} ({names})")
        return first_few(parts, MOST_REASONS).replace("), ", "); ")

    def fields(self) -> list[dict]:
        """Return plain values for JSON."""
        listed = []
        for reason, group in self._groups.items():
            entry = {"reason": reason, "count": group.count, "examples": group.examples}
            listed.append(entry)
        return listed


def _short(name: str) -> str:
    """Return a name for a message: without control characters, not too long."""
    text = readable(name)
    printable = "".join(_printable(character) for character in text)
    if len(printable) <= LONGEST_NAME:
        return printable
    half = LONGEST_NAME // 2
    return f"{printable[:half]}...{printable[-half:]}"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
