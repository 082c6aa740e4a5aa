"""Shard formats of the feature cache, one file each; the file's name is the format's name.

A format has these public names::

    # endings of the files of a shard; the last is the shard itself, others are companions
    SUFFIXES: tuple[str, ...]
    DEFAULT_DTYPE: str
    # optional: dtypes that a conversion into this format replaces, unless one is asked for
    WIDENED: dict[str, str]
    # files: suffix -> open binary file, written front to back
    write(files, keys, rows) -> int | None
    blocks(path, shape, dtype) -> Iterator[(keys, rows)]     # at most BLOCK rows each, in order
    # optional: the keys alone, faster than all blocks
    keys(path, count) -> Iterator[keys]

``rows`` [n, dim] may be a memory map and is read in blocks. ``write`` returns the byte at which the
rows lie in the shard as one little-endian array, so that any row can be used where it lies, or None
when they do not. ``blocks`` raises ValueError, naming the row where it can, for a file that does
not hold ``shape`` rows of ``dtype``. It reads the file piece by piece and never maps it into
memory: the pages of a map count as resident memory, which must not grow with the shard.
"""

import numpy as np

BLOCK = 16_384  # rows
Block = tuple[list[str], np.ndarray]  # keys, and their rows [n, dim]
