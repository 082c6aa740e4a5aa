"""Open the samples that a command's options select."""

from __future__ import annotations

from collections.abc import Sequence

from dimefm.data.rows import Columns, Rows
from dimefm.data.selection import Selection, select
from dimefm.data.sources import local_root, open_rows


def open_selected(
    sources: Sequence[str],
    kind: str,
    *,
    dataroot: str | None = None,
    input_format: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    key_column: str | None = None,
    separator: str | None = None,
    rows: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    scratch: str | None = None,
) -> Rows:
    """Open ``sources`` as rows of ``kind``, "image", "text" or "pair", and select some of them.

    The options mean what they mean on the command line; docs/recipes.md describes them. Raises
    DataError for a source that cannot be opened, and RecipeError for a selection that cannot be.
    """
    columns = Columns(
        image=image_column,
        text=text_column,
        key=key_column,
        separator=separator,
        root=local_root(dataroot, scratch),
    )
    opened = open_rows(
        sources,
        kind,
        columns=columns,
        dataroot=dataroot,
        input_format=input_format,
        scratch=scratch,
    )
    return select(opened, Selection.parse(rows, split, limit))
