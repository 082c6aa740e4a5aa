"""Feature files that others wrote: NumPy's arrays, clip-retrieval's output folder and DIME-FM's
TSVs.

=================== ================================================================================
form                what it is
=================== ================================================================================
``npy``             one array [n, D]; mapped, never read as a whole
``npz``             one array [n, D] among named ones, perhaps its ``keys`` [n]; read into memory
``clip-retrieval``  a folder of ``img_emb/img_emb_N.npy``, ``text_emb/text_emb_N.npy`` and
                    ``metadata/metadata_N.parquet``, N the partition's number with or without
                    leading zeros
``dime-fm tsv``     lines of ``key <tab> base64 of float32``; read into memory
=================== ================================================================================

Numbers are float16, float32 or float64. Nothing here unpickles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.cache.importing.arrays import open_npy, open_npz
from dimefm.cache.importing.clip_retrieval import FOLDERS, open_partitions
from dimefm.cache.importing.feature_tsv import open_tsvs
from dimefm.cache.importing.vectors import Vectors
from dimefm.errors import CacheError

__all__ = ["Vectors", "form_of", "open_tsvs", "open_vectors"]

ENDINGS = {".npy": "npy", ".npz": "npz", ".tsv": "dime-fm tsv"}


def form_of(path: Path) -> str:
    """Return the form of a feature file or folder, told by its ending and, for a folder, by what is
    in it.

    Raises CacheError when it is none of the four.
    """
    if path.is_dir():
        if any((path / part).is_dir() for part in FOLDERS.values()):
            return "clip-retrieval"
        hint = (
            "name the folder around it"
            if path.name in FOLDERS.values()
            else "name feature files one by one"
        )
        raise CacheError(
            f"{path}: holds neither img_emb/ nor text_emb/, so it is no output of clip-retrieval;"
            f" {hint}"
        )
    if not path.is_file():
        raise CacheError(f"{path}: there is no such feature file; check the path")
    if path.suffix not in ENDINGS:
        raise CacheError(
            f"{path}: the ending '{path.suffix}' is of no known form; expected .npy, .npz, a"
            " feature .tsv, or clip-retrieval's output folder"
        )
    return ENDINGS[path.suffix]


def open_vectors(
    paths: Sequence[Path],
    kind: str,
    *,
    array: str | None = None,
    keys: Sequence[Path] = (),
    key_column: str | None = None,
) -> list[Vectors]:
    """Open feature files of one form, in order; a clip-retrieval folder gives one :class:`Vectors`
    a partition.

    ``kind``, "image" or "text", chooses img_emb or text_emb. ``array`` names the array of ``.npz``
    files. ``keys`` are files that hold the keys, one for each path: ``.txt`` (a key a line),
    ``.tsv`` or ``.csv`` (their first column, or ``key_column`` of a table with a header). For
    clip-retrieval ``key_column`` is a column of its metadata, for ``.npz`` without key files an
    array.

    Raises CacheError when the files are of several forms, are damaged, hold no floating-point
    vectors [n, D], differ in D, or have another number of keys than rows.
    """
    forms = sorted({form_of(path) for path in paths})
    if len(forms) != 1:
        raise CacheError(
            f"{paths[0]} and others: files of {len(forms)} forms ({', '.join(forms)}); adopt each"
            " by itself"
        )
    form = forms[0]
    _refuse_idle(form, paths, array, keys, key_column)
    files = dict(zip(paths, keys, strict=False))
    if form == "npy":
        found = [open_npy(path, files.get(path), key_column) for path in paths]
    elif form == "npz":
        found = [open_npz(path, array, files.get(path), key_column) for path in paths]
    elif form == "clip-retrieval":
        found = [part for path in paths for part in open_partitions(path, kind, key_column)]
    else:
        found = open_tsvs(paths)
    other = next((each for each in found if each.dim != found[0].dim), None)
    if other is not None:
        raise CacheError(
            f"{other.path}: vectors of {other.dim} numbers, expected {found[0].dim} as in"
            f" {found[0].path}; adopt features of one encoder at a time"
        )
    return found


def _refuse_idle(
    form: str, paths: Sequence[Path], array: str | None, keys: Sequence[Path], column: str | None
) -> None:
    """Raise CacheError for an option that would do nothing, or too few of one."""
    if keys and form not in ("npy", "npz"):
        raise CacheError(f"--keys {keys[0]}: {form} files have keys of their own; leave it out")
    if keys and len(keys) != len(paths):
        raise CacheError(
            f"--keys: {len(keys)} files for {len(paths)} feature files; each needs its own, in the"
            " same order"
        )
    if array is not None and form != "npz":
        raise CacheError(f"--array {array}: {form} files hold one array; leave it out")
    plain = next((path for path in keys if path.suffix not in (".tsv", ".csv")), None)
    if column is not None and (plain or (not keys and form in ("npy", "dime-fm tsv"))):
        raise CacheError(
            f"--key-column {column}: {plain or f'{form} files'} have no columns to choose from;"
            " leave it out"
        )
