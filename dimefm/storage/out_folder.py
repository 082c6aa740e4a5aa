"""Folders that commands write: new, empty or their own, never one that holds something else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dimefm.errors import DimefmError
from dimefm.storage.remote import is_url

# what a file manager, a disk or git leaves in a folder that a user takes for empty
UNNOTICED = {
    ".DS_Store",
    ".Trashes",
    ".gitignore",
    ".gitkeep",
    ".ipynb_checkpoints",
    "Thumbs.db",
    "desktop.ini",
    "lost+found",
}


def refuse_foreign(
    out: str | Path, what: str, marks: Iterable[str], *, only_files: bool = False
) -> None:
    """Raise DimefmError when ``out`` is a folder that is not empty and not of the command's own.

    ``what`` the command writes, e.g. "run", is in a folder with a file or folder of one of the
    names ``marks``; they are patterns. With ``only_files`` a folder of other folders is taken, too:
    what is written goes into folders next to them. URLs are not looked at.
    """
    if isinstance(out, str) and is_url(out):
        return
    folder = Path(out)
    if not folder.is_dir():
        return
    foreign = []
    for path in sorted(folder.iterdir()):
        is_counted = path.is_file() or not only_files
        if path.name not in UNNOTICED and is_counted:
            foreign.append(path.name)
    if not foreign or any(_has(folder, mark) for mark in marks):
        return
    raise DimefmError(
        f"{folder}: holds other files, e.g. {ascii(foreign[0][:60])}, and no {what} of before;"
        " nothing was written. Fix: choose a new or empty folder"
    )


def _has(folder: Path, mark: str) -> bool:
    return next(folder.glob(mark), None) is not None
