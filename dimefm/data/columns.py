"""Choose columns of tables by name, and turn their values into texts.

Parquet, CSV and JSON lines share this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.data.rows import Columns, inside
from dimefm.errors import BadRow, DataError
from dimefm.storage import reading
from dimefm.storage.reading import is_row_fault

USUAL = {
    "image": ("image", "img", "jpg", "png", "webp", "filepath", "path", "file", "image_path"),
    "text": ("captions", "caption", "title", "text", "sentence", "txt"),
    "key": ("key", "__key__", "id", "uid", "image_id"),
    "label": ("label", "labels", "cls", "fine_label", "class"),
}


@dataclass(frozen=True)
class Chosen:
    """The column names to read; None where a column is absent or not wanted."""

    image: str | None
    text: str | None
    key: str | None
    label: str | None


def choose(path: Path, names: Sequence[str], kind: str, columns: Columns) -> Chosen:
    """Return the columns that ``kind`` needs among the ``names`` of the table at ``path``.

    A ``pair`` needs its image; its text may also come from a label, so the text column is optional
    for it. Raises DataError when a column is missing.
    """

    def pick(what: str, is_needed: bool) -> str | None:
        asked = getattr(columns, what)
        if asked is not None:
            if asked not in names:
                raise DataError(
                    f"{path}: no column '{asked}' for the {what}; columns found: {', '.join(names)}"
                )
            return asked
        for usual in USUAL[what]:
            if usual in names:
                return usual
        if is_needed:
            raise DataError(
                f"{path}: no {what} column; expected one of {', '.join(USUAL[what])}, found:"
                f" {', '.join(names)}. Fix: name it with --{what}-column"
            )
        return None

    wants_image = kind in ("image", "pair")
    wants_text = kind in ("text", "pair")
    return Chosen(
        image=pick("image", True) if wants_image else None,
        text=pick("text", kind == "text") if wants_text else None,
        key=pick("key", False),
        label=pick("label", False) if wants_image else None,
    )


def sentences(value: object) -> tuple[str, ...]:
    """Return the texts of one cell: a string or a list of strings; raise BadRow for others."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    got = "an empty list" if value == [] else type(value).__name__
    raise BadRow(f"has no sentence (found {got})")


def read_file(root: Path, name: object, where: str) -> bytes:
    """Return the bytes of file ``name`` under ``root``; ``where`` is the table and the row.

    Raises BadRow when the file is missing, DataError when it is outside the root.
    """
    if not isinstance(name, str) or not name:
        raise BadRow("names no image file")
    try:
        path = inside(root, name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a link to itself
        if is_row_fault(error):
            raise BadRow(f"image file {name!r} cannot be read: {error}") from error
        raise
    try:
        return reading.read_file(path)
    except BadRow as error:
        raise BadRow(f"image file {name} {error}") from error
