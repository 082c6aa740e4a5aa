"""Choosing columns of tables by name, and turning their values into sentences; shared by Parquet,
CSV and JSONL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.data.rows import Columns, inside
from dimefm.errors import BadRow, DataError

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


def choose(path: Path, found: Sequence[str], kind: str, columns: Columns) -> Chosen:
    """Return the columns of ``path`` that ``kind`` needs; raise DataError when one is missing.

    A ``pair`` needs its image; its text may also come from a label, so the text column is optional
    there.
    """

    def pick(what: str, needed: bool) -> str | None:
        asked = getattr(columns, what)
        if asked is not None:
            if asked not in found:
                raise DataError(
                    f"{path}: no column '{asked}' for the {what}; columns found: {', '.join(found)}"
                )
            return asked
        usual = next((name for name in USUAL[what] if name in found), None)
        if usual is None and needed:
            raise DataError(
                f"{path}: no {what} column; expected one of {', '.join(USUAL[what])}, found:"
                f" {', '.join(found)}; name it with --{what}-column"
            )
        return usual

    return Chosen(
        image=pick("image", True) if kind in ("image", "pair") else None,
        text=pick("text", kind == "text") if kind in ("text", "pair") else None,
        key=pick("key", False),
        label=pick("label", False) if kind in ("image", "pair") else None,
    )


def sentences(value: object) -> tuple[str, ...]:
    """Return the sentences of one cell: a string or a list of strings; raise BadRow for anything
    else.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise BadRow(
        f"has no sentence (found {'an empty list' if value == [] else type(value).__name__})"
    )


def read_file(root: Path, name: object, where: str) -> bytes:
    """Return the bytes of file ``name`` under ``root``; raise BadRow when it is missing, DataError
    when it leaves root.

    ``where`` names the table and row that say so.
    """
    if not isinstance(name, str) or not name:
        raise BadRow("names no image file")
    try:
        found = inside(root, name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a link to itself
        raise BadRow(f"image file {name!r} cannot be read: {error}") from error
    try:
        return found.read_bytes()
    except OSError as error:
        raise BadRow(f"image file {name} cannot be read: {error.strerror}") from error
