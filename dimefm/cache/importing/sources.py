"""Feature files of other programs: arrays, tables, clip-retrieval's folders, DIME-FM's TSVs.

=================== ================================================================================
form                what it is
=================== ================================================================================
``npy``             one array [n, D]; mapped, never read as a whole
``npz``             one array [n, D] among named ones, perhaps its ``keys`` [n]; read into memory
``clip-retrieval``  a folder of ``img_emb/img_emb_N.npy``, ``text_emb/text_emb_N.npy`` and
                    ``metadata/metadata_N.parquet``, N the partition's number with or without
                    leading zeros
``parquet``         a column of lists of one length, perhaps one of keys; read into memory
``hdf5``            one dataset [n, D] of floats among others, perhaps its keys; read into memory
``dime-fm tsv``     lines of ``key <tab> base64 of float32``; read into memory
=================== ================================================================================

Numbers are float16, float32 or float64. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.cache.importing.arrays import open_npy, open_npz
from dimefm.cache.importing.clip_retrieval import FOLDERS, open_partitions
from dimefm.cache.importing.feature_tsv import open_tsvs
from dimefm.cache.importing.hdf5_arrays import open_hdf5
from dimefm.cache.importing.tables import open_parquet
from dimefm.cache.importing.vectors import Vectors
from dimefm.errors import CacheError

__all__ = ["Vectors", "form_of", "open_tsvs", "open_vectors"]

ENDINGS = {
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".tsv": "dime-fm tsv",
}


def form_of(path: Path) -> str:
    """Return the form of a feature file, by its ending, or of a folder, by its content.

    Raises CacheError when it is none of them.
    """
    if path.is_dir():
        if any((path / part).is_dir() for part in FOLDERS.values()):
            return "clip-retrieval"
        hint = "name feature files one by one"
        if path.name in FOLDERS.values():
            hint = "name the folder around it"
        raise CacheError(
            f"{path}: holds neither img_emb/ nor text_emb/, so it is no output of clip-retrieval."
            f" Fix: {hint}"
        )
    if not path.is_file():
        raise CacheError(f"{path}: there is no such feature file. Fix: check the path")
    if path.suffix not in ENDINGS:
        raise CacheError(
            f"{path}: the ending '{path.suffix}' is of no known form. Fix: name .npy, .npz,"
            " .parquet, .h5 or feature .tsv files, or clip-retrieval's output folder"
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
    """Open feature files of one form, in order; a clip-retrieval folder gives its partitions.

    ``kind``, "image" or "text", chooses img_emb or text_emb. ``array`` names the array of ``.npz``
    files, the column of ``.parquet`` or the dataset of ``.h5``. ``keys`` are files that hold the
    keys, one for each path: ``.txt`` (a key a line), ``.tsv`` or ``.csv`` (their first column, or
    ``key_column`` of a table with a header). For clip-retrieval ``key_column`` is a column of its
    metadata, for ``.parquet`` a column, for ``.npz`` and ``.h5`` without key files an array.

    Raises CacheError when the files are of several forms, are damaged, hold no floating-point
    vectors [n, D], differ in D, or have another number of keys than rows.
    """
    forms = sorted({form_of(path) for path in paths})
    if len(forms) != 1:
        raise CacheError(
            f"{paths[0]} and others: files of {len(forms)} forms ({', '.join(forms)}). Fix: adopt"
            " each by itself"
        )
    form = forms[0]
    _refuse_unused(form, paths, array, keys, key_column)
    opened: list[Vectors] = []
    if form == "clip-retrieval":
        for path in paths:
            opened += open_partitions(path, kind, key_column)
    elif form == "dime-fm tsv":
        opened = open_tsvs(paths)
    else:
        key_files = dict(zip(paths, keys, strict=False))
        for path in paths:
            opened.append(_open_array(form, path, array, key_files.get(path), key_column))
    first = opened[0]
    for vectors in opened:
        if vectors.dim != first.dim:
            raise CacheError(
                f"{vectors.path}: vectors of {vectors.dim} numbers, expected {first.dim} as in"
                f" {first.path}. Fix: adopt features of one encoder at a time"
            )
    return opened


def _open_array(
    form: str, path: Path, array: str | None, key_file: Path | None, key_column: str | None
) -> Vectors:
    if form == "npy":
        return open_npy(path, key_file, key_column)
    if form == "npz":
        return open_npz(path, array, key_file, key_column)
    if form == "hdf5":
        return open_hdf5(path, array, key_file, key_column)
    return open_parquet(path, array, key_column)


def _refuse_unused(
    form: str, paths: Sequence[Path], array: str | None, keys: Sequence[Path], column: str | None
) -> None:
    """Raise CacheError for an option without effect, or another number of key files than paths."""
    if keys and form not in ("npy", "npz", "hdf5"):
        raise CacheError(
            f"--keys {keys[0]}: {form} files have keys of their own. Fix: leave it out"
        )
    if keys and len(keys) != len(paths):
        raise CacheError(
            f"--keys: {len(keys)} files for {len(paths)} feature files. Fix: name one for each, in"
            " the same order"
        )
    if array is not None and form not in ("npz", "parquet", "hdf5"):
        raise CacheError(f"--array {array}: {form} files hold one array. Fix: leave it out")
    if column is None:
        return
    without_columns: Path | str | None = None
    for path in keys:
        if path.suffix not in (".tsv", ".csv"):
            without_columns = path
            break
    if not keys and form in ("npy", "dime-fm tsv"):
        without_columns = f"{form} files"
    if without_columns is not None:
        raise CacheError(
            f"--key-column {column}: {without_columns} have no columns to choose from. Fix: leave"
            " it out"
        )
