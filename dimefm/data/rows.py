"""Rows: an ordered source of images or texts, addressed by number.

A *source* is what the user names: a file, a folder, a pattern or a ``.list``. It opens as shards
(one per file), and a shard is a sequence of :class:`Row`. Reading row i is a pure function of the
file and i; a row that cannot be read raises :class:`~dimefm.errors.BadRow` and never returns a
substitute. :class:`Shard` guards the reading of every row, see :func:`row_guard`.

A format is one file in ``data/formats/`` with these public names::

    SUFFIXES: tuple[str, ...]   # endings of the files it reads, e.g. (".tar",); () for a folder
    KEEPS_OPEN: bool            # optional: True if every file stays open
    KINDS: frozenset[str]       # what it can hold: "image", "text" or both
    claims(path: Path) -> bool  # is this file (with one of the suffixes) of this format?
    open_shards(path, name, kind, columns) -> list[Shard]
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.data.skipped import Skipped
from dimefm.errors import BadRow, DataError, DimefmError
from dimefm.runtime.text import readable, system_name
from dimefm.storage.files import sampled_sha256
from dimefm.storage.reading import is_row_fault

# of blocks that all shards of a process keep in memory together, those used last
BYTES_KEPT = 2 << 30
LONGEST_REASON = 200  # characters of another library's message in a quarantine entry
LONGEST_KEY = 65_535  # bytes; formats of caches hold no longer key
MOST_DIGITS = 18  # of a label that is a number; more do not fit into 64 bits


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row.

    ``image`` holds the bytes of an encoded image file; ``texts`` zero or more texts; ``label`` a
    class number or a class name. A source fills what it has.
    """

    key: str
    image: bytes | None = None
    texts: tuple[str, ...] = ()
    label: int | str | None = None


@contextlib.contextmanager
def row_guard() -> Iterator[None]:
    """Turn what any library raises on a bad row inside the block into a BadRow.

    Errors of dimefm pass through, and so do those of the machine (see
    :func:`~dimefm.storage.reading.is_row_fault`).
    """
    try:
        yield
    except Exception as error:
        raised = bad_row(error)
        if raised is error:
            raise
        raise raised from error


def bad_row(error: Exception) -> Exception:
    """Return the error to raise in place of ``error``, which the reading of a row has raised."""
    if isinstance(error, DimefmError) or not is_row_fault(error):
        return error
    lines = str(error).strip().splitlines() or ["no reason given"]
    reason = readable(lines[0][:LONGEST_REASON])
    return BadRow(f"cannot be read ({type(error).__name__}: {reason})")


def label_of(text: str) -> int | str:
    """Return the label that ``text`` states: a class number, or else a class name.

    Raises BadRow for a number that no class can have.
    """
    if not text.isdecimal():
        return text
    if len(text) > MOST_DIGITS:
        raise BadRow(
            f"its label is a number of {len(text):,} digits, expected {MOST_DIGITS} at most"
        )
    return int(text)


def check_key(key: str) -> None:
    """Raise BadRow for a key that no cache can hold."""
    size = len(key) if key.isascii() else len(key.encode("utf-8", "surrogatepass"))
    if size > LONGEST_KEY:
        raise BadRow(f"its key has {size:,} bytes, expected {LONGEST_KEY:,} at most")
    if "\0" in key:
        raise BadRow("its key holds the character NUL")


def _guarded(read: Callable[[Shard, int], Row]) -> Callable[[Shard, int], Row]:
    """Return the ``__getitem__`` of a shard so that it raises BadRow for every bad row."""

    @functools.wraps(read)
    def guarded(shard: Shard, index: int) -> Row:
        try:
            return read(shard, index)
        except Exception as error:
            is_past_end = isinstance(error, IndexError) and not 0 <= index < len(shard)
            raised = error if is_past_end else bad_row(error)
            if raised is error:
                raise
            raise raised from error

    return guarded


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what, and the ``root`` that file names may not leave.

    ``None`` means "the first usual name that the table has" (see the formats). ``separator`` is for
    CSV and TSV tables only.
    """

    image: str | None = None
    text: str | None = None
    key: str | None = None
    label: str | None = None
    separator: str | None = None
    root: Path | None = None


class Shard(ABC):
    """One file of a source.

    ``name`` identifies it: its path relative to the source's root, with forward slashes. ``entry``
    is the number of the source that names it, and ``weight`` how often its rows are dealt in
    training, compared with rows of weight 1; :func:`~dimefm.data.sources.open_rows` sets both.
    ``skipped`` counts what its file or folder holds besides rows.
    """

    entry: int = 0
    weight: float = 1.0
    skipped: Skipped | None = None

    def __init_subclass__(cls, **options):
        """Guard the reading of rows of every format."""
        super().__init_subclass__(**options)
        if "__getitem__" in vars(cls):
            guarded = _guarded(vars(cls)["__getitem__"])
            setattr(cls, "__getitem__", guarded)  # noqa: B010 - mypy refuses the assignment

    def __init__(self, path: Path, name: str):
        self.path = path
        self.name = name

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows, readable or not."""

    @abstractmethod
    def __getitem__(self, index: int) -> Row:
        """Return row ``index``, 0 <= index < len; raise BadRow when it cannot be read."""

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (first rows, sizes) of blocks of rows that are only read as a whole.

        Sizes are about the bytes that a block takes in memory; both are int64 [blocks], and the
        first block begins at 0. There are no blocks when every row is read by itself.
        """
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing.copy()

    def digest(self) -> str:
        """Return a digest of the shard's content that does not depend on its folder."""
        return sampled_sha256(self.path)

    def digests(self) -> tuple[str, ...]:
        """Return :meth:`digest` and, of a packed shard, those of what it was packed from."""
        return (self.digest(),)

    @abstractmethod
    def keys(self) -> list[str]:
        """Return the keys of all rows in order, including rows that cannot be read."""

    def former_keys(self) -> list[str] | None:
        """Return the keys that earlier versions gave the rows, None where they are the same."""
        return None


class Rows(Sequence[Row]):
    """All shards of a source as one sequence; ``rows[i]`` counts through the shards in order.

    ``skipped`` counts what the sources hold besides rows. ``selection`` says which of their rows
    these are, "" for all.
    """

    def __init__(
        self, shards: Sequence[Shard], skipped: Skipped | None = None, selection: str = ""
    ):
        self.shards = tuple(shards)
        self.skipped = skipped or Skipped()
        self.selection = selection
        counts = [len(shard) for shard in self.shards]
        self.starts = list(itertools.accumulate(counts, initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Return (shard number, row number inside it) of global row ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = bisect.bisect_right(self.starts, index) - 1
        return shard, index - self.starts[shard]

    def __getitem__(self, index):
        shard, local = self.locate(index)
        return self.shards[shard][local]

    def __iter__(self) -> Iterator[Row]:
        for shard in self.shards:
            for index in range(len(shard)):
                yield shard[index]


def inside(root: Path, name: str) -> Path:
    """Return ``root / name`` resolved; raise DataError when it leaves ``root``.

    Links and ``..`` may lead out of it.
    """
    path = (root / system_name(name)).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(
            f"'{name}' leads outside {root}. Fix: give the folder that holds the files with"
            " --dataroot"
        )
    return path
