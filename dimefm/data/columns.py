"""Choose columns of tables by name, and turn their values into texts.

Parquet, CSV and JSON lines share this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.data.rows import Columns, inside
from dimefm.errors import BadRow, DataError
from dimefm.runtime.text import first_few
from dimefm.storage import reading
from dimefm.storage.reading import is_row_fault

USUAL = {
    "image": ("image", "img", "jpg", "png", "webp", "filepath", "path", "file", "image_path"),
    "text": ("captions", "caption", "title", "text", "sentence", "txt"),
    "key": ("key", "__key__", "id", "uid", "image_id"),
    "label": ("label", "labels", "cls", "fine_label", "class"),
}

SEPARATORS = ";|\t"
FILE_OR_URL = re.compile(r"^https?://\S+$|\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
NAMED = 8  # columns that a message names at most
LONGEST_NAME = 1024  # characters of the path of a file
SHOWN = 80  # characters of a cell in a message


@dataclass(frozen=True)
class Chosen:
    """The column names to read; None where a column is absent or not wanted.

    ``file`` is the column that names image files. They are the keys of a table without a key
    column, so that its images and its texts have the same keys.
    """

    image: str | None
    text: str | None
    key: str | None
    label: str | None
    file: str | None


def choose(path: Path, names: Sequence[str], kind: str, columns: Columns) -> Chosen:
    """Return the columns that ``kind`` needs among the ``names`` of the table at ``path``.

    A ``pair`` needs its image; its text may also come from a label, so the text column is optional
    for it. Raises DataError when a column is missing.
    """

    def pick(what: str, is_needed: bool) -> str | None:
        name = getattr(columns, what)
        if name is None:
            name = _usual(what, names)
        if name is None and is_needed:
            raise DataError(
                f"{path}: no {what} column; expected one of {', '.join(USUAL[what])}, found:"
                f" {_names(names)}. Fix: name it with --{what}-column{_hint(names)}"
            )
        if name is not None:
            _check_name(path, name, names, what)
        return name

    wants_image = kind in ("image", "pair")
    wants_text = kind in ("text", "pair")
    return Chosen(
        image=pick("image", True) if wants_image else None,
        text=pick("text", kind == "text") if wants_text else None,
        key=pick("key", False),
        label=pick("label", False) if wants_image else None,
        file=columns.image if columns.image in names else _usual("image", names),
    )


def _usual(what: str, names: Sequence[str]) -> str | None:
    """Return the column of a usual name, or None."""
    for usual in USUAL[what]:
        if usual in names:
            return usual
    return None


def _check_name(path: Path, name: str, names: Sequence[str], what: str) -> None:
    """Raise DataError unless one column, and no other, has the name."""
    count = names.count(name)
    if not count:
        raise DataError(
            f"{path}: no column '{shown(name)}' for the {what}; columns found: {_names(names)}."
            " Fix: name one of them"
        )
    if count > 1:
        raise DataError(
            f"{path}: {count} columns are named '{shown(name)}', expected one. Fix: rename them, or"
            " name another column"
        )


def _names(names: Sequence[str]) -> str:
    """Return the first names of columns in words."""
    return first_few([shown(name) for name in names], NAMED)


def _hint(names: Sequence[str]) -> str:
    """Return a further remedy where the names hold another separator, or are of no header."""
    first, *others = names or ("",)
    if looks_like_data(names):
        return ", or add a first line with the names of the columns"
    if not others and any(separator in first for separator in SEPARATORS):
        return ", or the separator with --separator"
    return ""


def looks_like_data(names: Sequence[str]) -> bool:
    """Tell whether the first line of a table is a row: some cell is a URL or names an image."""
    return any(FILE_OR_URL.search(name) is not None for name in names)


def sentences(value: object) -> tuple[str, ...]:
    """Return the texts of one cell: a string or a list of strings; raise BadRow for others."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    got = "an empty list" if value == [] else type(value).__name__
    raise BadRow(f"has no sentence (found {got})")


def shown(text: str) -> str:
    """Return the first characters of a cell for a message, control characters escaped."""
    start = text[:SHOWN]
    if not start.isprintable():
        start = start.encode("unicode_escape").decode("ascii")
    return f"{start}... ({len(text):,} characters)" if len(text) > SHOWN else start


def read_file(root: Path, name: object, where: str) -> bytes:
    """Return the bytes of file ``name`` under ``root``; ``where`` is the table and the row.

    Raises BadRow when the file is missing, DataError when it is outside the root.
    """
    if not isinstance(name, str) or not name:
        raise BadRow("names no image file")
    if name.startswith(("http://", "https://")):
        raise BadRow(
            f"names the URL {shown(name)}, expected a file. Fix: fetch the images with img2dataset"
        )
    if len(name) > LONGEST_NAME:
        raise BadRow(f"names no image file, and is no image in base64: {shown(name)}")
    try:
        path = inside(root, name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a link to itself
        if is_row_fault(error):
            raise BadRow(f"image file {shown(name)} cannot be read: {error}") from error
        raise
    try:
        return reading.read_file(path)
    except BadRow as error:
        raise BadRow(f"image file {shown(name)} {error}") from error
