"""The parts that a report is made of, as data: sections with tables, figures and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

NONE = "–"
"""What a cell shows where there is no value."""


@dataclass(frozen=True)
class Table:
    """Cells as text, row by row. The columns numbered in ``left`` are text, the others numbers.

    ``note`` stands below the table.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    note: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend: the ``style`` is a class of the style sheet."""

    style: str
    label: str


@dataclass(frozen=True)
class Figure:
    """A figure, drawn for a wide and for a narrow screen.

    ``description`` says in words what the figure shows. ``table`` has its numbers. Small figures
    stand side by side.
    """

    name: str
    title: str
    description: str
    wide: str
    narrow: str
    keys: Sequence[Key] = ()
    table: Table | None = None
    note: str = ""
    is_small: bool = False


@dataclass(frozen=True)
class Tile:
    """One of the main numbers."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Picture:
    """An example: a picture as JPEG, or None where there is only text, and lines about it.

    ``alt`` describes the picture. ``is_right`` says whether the model was right, None if unknown.
    ``is_small`` says that a picture has so few pixels that they are shown as squares.
    """

    jpeg: bytes | None
    alt: str
    title: str
    lines: Sequence[str] = ()
    is_right: bool | None = None
    is_small: bool = False


@dataclass(frozen=True)
class Gallery:
    """Examples of one kind, e.g. of one dataset and model."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the page. ``name`` is its anchor."""

    name: str
    title: str
    text: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = field(default=())
