"""One feature file of another program, and the files that hold its keys."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.errors import CacheError, DimefmError
from dimefm.runtime.text import first_few
from dimefm.storage.files import sampled_sha256, sha256_keys
from dimefm.storage.reading import is_row_fault

FLOATS = ("float16", "float32", "float64")
ROW_NUMBERS = "row numbers"
LARGEST_RATIO = 64  # how many times larger an array may be than the bytes that pack it
SMALL = 1 << 28  # bytes of an array that may be packed as tightly as it likes
LONGEST_REASON = 160  # characters of a library's reason in a message


@dataclass(frozen=True)
class Vectors:
    """One opened feature file: ``count`` rows of ``dtype[dim]``, read when they are asked for.

    ``read(start, stop)`` returns (keys, rows [stop - start, dim]), a memory map if the file is
    ``mapped``. ``named_by`` tells where the keys come from; ``key_files`` are the other files that
    hold them.
    """

    path: Path
    form: str
    count: int
    dim: int
    dtype: str
    read: Callable[[int, int], tuple[list[str], np.ndarray]]
    named_by: str = ROW_NUMBERS
    key_files: tuple[Path, ...] = ()

    @property
    def mapped(self) -> bool:
        """Whether rows can be read without reading the whole file."""
        return self.path.suffix == ".npy"

    def digest(self) -> str:
        """Return a digest of the files' content that does not depend on where they lie."""
        digest = sampled_sha256(self.path)
        if not self.key_files:
            return digest
        key_digests = [sampled_sha256(path) for path in self.key_files]
        return sha256_keys([digest, *key_digests])


@contextlib.contextmanager
def refused(where: object, what: str, remedy: str) -> Iterator[None]:
    """Turn what a library raises for a damaged file in the block into a CacheError of one line.

    ``where`` begins the line, ``what`` says what is wrong, ``remedy`` what to do. Libraries raise
    almost anything for bytes that they cannot parse. Errors of dimefm, of the disk and of the
    memory pass as they are.
    """
    try:
        yield
    except DimefmError:
        raise
    except Exception as error:
        if not is_row_fault(error):
            raise
        reason = first_line(error)[:LONGEST_REASON]
        raise CacheError(f"{where}: {what} ({reason}). Fix: {remedy}") from error


def refuse_bomb(packed: int, unpacked: int) -> None:
    """Raise ValueError when ``packed`` bytes of a file promise too many ``unpacked`` ones."""
    most = max(SMALL, LARGEST_RATIO * packed)
    if unpacked > most:
        raise ValueError(f"{packed:,} bytes that unpack to {unpacked:,}, at most {most:,} are read")


def checked(where: object, rows: np.ndarray) -> np.ndarray:
    """Return ``rows`` when it is [n, D] of a floating-point type.

    Raises CacheError, beginning with ``where``, for any other array.
    """
    if rows.ndim != 2 or not rows.shape[1]:
        raise CacheError(
            f"{where}: an array of shape {list(rows.shape)}, expected [rows, dimensions]. Fix:"
            " reshape and save it"
        )
    if rows.dtype.name not in FLOATS:
        raise CacheError(
            f"{where}: numbers are {rows.dtype}, expected {', '.join(FLOATS)}. Fix: save them as"
            " float32"
        )
    return rows


def check_count(path: Path, rows: int, keys: int, key_files: Path) -> None:
    """Raise CacheError unless ``path`` has as many rows as ``key_files`` has keys."""
    if keys == rows:
        return
    hint = ". Fix: name the keys of these rows"
    if keys == rows + 1:
        hint = ". Fix: if its first line is a header, name a column of it with --key-column"
    raise CacheError(
        f"{path}: {rows} rows, but {key_files} has {keys} keys; expected one key a row{hint}"
    )


def row_numbers(start: int, stop: int) -> list[str]:
    """Return the keys of rows that have none: their numbers, counted from 0."""
    return [str(row) for row in range(start, stop)]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type when it has no text."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def read_keys(path: Path, column: str | None = None) -> list[str]:
    """Return the keys of a file: the lines of a ``.txt``, or a column of a ``.tsv`` or ``.csv``.

    With ``column`` the table's first line names its columns. Without it every line is a row, and
    the keys are in the first column. Raises CacheError when the file is not UTF-8, or lacks the
    column.
    """
    with refused(path, "cannot be read as keys", "write UTF-8, a key a line"):
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix not in (".tsv", ".csv"):
                return [line.rstrip("\r\n") for line in file]
            if path.suffix == ".tsv":
                table = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                table = csv.reader(file)
            place = 0
            if column:
                names = next(table, [])
                if column not in names:
                    raise CacheError(
                        f"{path}: there is no column {column}; its first line has"
                        f" {first_few(names, 8)}. Fix: name one of them with --key-column"
                    )
                place = names.index(column)
            return [row[place] for row in table if row]


def only(path: Path, names: list[str]) -> str:
    """Return the one name among ``names`` of what could be the vectors.

    Raises CacheError when there are several, or none.
    """
    if len(names) == 1:
        return names[0]
    held = "there are no vectors"
    if names:
        held = f"{len(names)} arrays could be the vectors ({first_few(names, 8)})"
    raise CacheError(f"{path}: {held}. Fix: name one with --array")


def texts(where: str, keys: np.ndarray) -> list[str]:
    """Return the keys of a one-dimensional array of text, bytes (UTF-8) or whole numbers."""
    if keys.ndim != 1 or keys.dtype.kind not in "USiu":
        raise CacheError(
            f"{where}: {keys.dtype} of shape {list(keys.shape)}, expected text [rows]. Fix: give"
            " the keys by --keys"
        )
    try:
        return [
            key.decode("utf-8") if isinstance(key, bytes) else str(key) for key in keys.tolist()
        ]
    except UnicodeDecodeError as error:
        raise CacheError(
            f"{where}: a key is not UTF-8 ({error}). Fix: give the keys by --keys"
        ) from error
