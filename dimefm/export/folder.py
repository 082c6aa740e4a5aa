"""The folder of an export: written beside its place, and there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dimefm.errors import DimefmError
from dimefm.runtime.os_errors import REMEDIES
from dimefm.storage.files import remove_new_dirs_on_error, sync_folder
from dimefm.storage.out_folder import UNNOTICED, refuse_foreign

RECORD = "export.json"
"""File by which a folder is known as an export."""

PARTIAL = ".partial"
REPLACED = ".replaced"


@contextlib.contextmanager
def new_export(out: Path) -> Iterator[Path]:
    """Make a folder for the block's time that then becomes ``out``.

    It holds ``RECORD``, which the block fills.

    An earlier export in ``out`` is replaced. When the block raises, ``out`` is as it was. Raises
    DimefmError when ``out`` holds anything else, or cannot be written.
    """
    out = Path(os.path.realpath(out))  # else a link would be renamed
    if Path.cwd().is_relative_to(out):
        raise DimefmError(
            f"{out}: holds the working folder, and an export takes the place of a whole folder."
            " Fix: name a new folder with --out"
        )
    refuse_foreign(out, "export", (RECORD,))
    partial = _beside(out, PARTIAL)
    try:
        with remove_new_dirs_on_error(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
            _remove(partial)
            partial.mkdir()
            (partial / RECORD).write_text("{}\n", encoding="utf-8")  # known as ours if killed
            try:
                yield partial
                _move(partial, out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "choose another --out")
        raise DimefmError(
            f"{error.filename or out}: the export stopped: {error.strerror or error}. Fix: {remedy}"
        ) from error


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}{ending}")


def _remove(folder: Path) -> None:
    """Remove what a killed export left; raise DimefmError for anything else of that name."""
    refuse_foreign(folder, "export", (RECORD,))
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def _move(partial: Path, out: Path) -> None:
    """Let a finished folder take the place of an empty one, or of an earlier export."""
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            _sync(path)
    replaced = _beside(out, REPLACED)
    _remove(replaced)
    if out.is_dir():
        _keep_unnoticed(out, partial)
        os.replace(out, replaced)
    try:
        os.replace(partial, out)
    except OSError:
        if replaced.is_dir():
            os.replace(replaced, out)
        raise
    sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _keep_unnoticed(out: Path, partial: Path) -> None:
    """Copy files that other programs keep in a folder, like ``.gitignore``."""
    for name in UNNOTICED:
        path = out / name
        if path.is_file() and not (partial / name).exists():
            shutil.copy2(path, partial / name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
