"""Read the row groups of a Parquet file: as a whole, or in parts where a group is large.

A group may hold gigabytes, and a few stored kilobytes may stand for them. The metadata tell which
groups are large; of these, parts of about PART bytes are read one after another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.data.pread import PreadFile

LARGE = 1 << 30  # bytes of a group beyond which it is read in parts
PART = 32 << 20  # bytes of a part
PARTS_KEPT = 512 << 20  # bytes of the parts of one file that stay in memory
FEWEST_PARTS = 8  # that stay in memory whatever their size: one for each thread
STREAMS = 16  # places of one group at which threads read on
PARTS_PER_BLOCK = 4  # a block is what training deals at once
BUFFER = 1 << 20  # bytes that a stream reads at once
PROBE = 4096  # bytes of each column that a probe reads at once
PAGE_HEAD = 64  # bytes that hold the first fields of a page's header


class RowGroups:
    """The row groups of one file, of which some columns are wanted."""

    def __init__(self, path: Path, file: pq.ParquetFile, wanted: list[str]):
        """Raises ArrowInvalid when the counts of rows disagree."""
        self.path = path
        self.file = file
        self.wanted = wanted
        metadata = file.metadata
        counts = [metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
            raise pa.ArrowInvalid("its counts of rows disagree")
        self.starts = np.cumsum([0, *counts])
        self._rows_per_part: dict[int, int] = {}
        self._probed: set[int] = set()
        self._parts: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._streams: list[_Stream] = []
        self._lock = threading.RLock()

    def __getstate__(self):
        nothing: dict = {"file": None, "_lock": None, "_streams": [], "_parts": OrderedDict()}
        return {**self.__dict__, **nothing}

    def __setstate__(self, state):
        self.__dict__.update(state, file=pq.ParquetFile(state["path"]), _lock=threading.RLock())

    def rows(self, group: int) -> int:
        """Return the number of rows of a group."""
        return int(self.starts[group + 1] - self.starts[group])

    def bytes(self, group: int) -> int:
        """Return the bytes of the wanted columns of a group, as the metadata state them."""
        metadata = self._columns_of(group)
        return sum(metadata.column(i).total_uncompressed_size for i in self._wanted_columns())

    def rows_per_part(self, group: int) -> int:
        """Return how many rows of a group are read together, all of them if it is not large.

        Of a group that is large only when values that it stores once are repeated, this is known
        when it has been read.
        """
        with self._lock:
            if group not in self._rows_per_part:
                self._rows_per_part[group] = self._fitting(group)
            return self._rows_per_part[group]

    def _fitting(self, group: int) -> int:
        rows = self.rows(group)
        size = self.bytes(group)
        return rows if size <= LARGE else max(1, PART * rows // size)

    def whole(self, group: int, columns: list[str]) -> pa.Table | None:
        """Return columns of a group, None when it is large."""
        rows = self.rows(group)
        if self.rows_per_part(group) < rows:
            return None
        longest = self._longest_repeated(group)
        if longest * rows <= LARGE:
            with self._lock:
                table = self.file.read_row_groups([group], columns=columns)
            return self._checked(table, group, columns)
        fitting = max(1, PART // longest)
        batches: list[pa.RecordBatch] = []
        total = 0
        for batch in self._batches(group, fitting, columns):
            batches.append(batch)
            total += batch.nbytes
            if total > LARGE:
                with self._lock:
                    self._rows_per_part[group] = fitting
                return None
        table = self._checked(pa.Table.from_batches(batches), group, columns)
        return table.combine_chunks() if total <= PART else table

    def _checked(self, table: pa.Table, group: int, columns: list[str]) -> pa.Table:
        """Return a table of a whole group; raise ArrowInvalid when rows or columns are missing."""
        if table.num_rows != self.rows(group):
            raise pa.ArrowInvalid(f"{table.num_rows} rows, expected {self.rows(group)}")
        missing = set(columns) - set(table.column_names)
        if missing:
            raise pa.ArrowInvalid(f"no values of column {min(missing)}")
        return table

    def _longest_repeated(self, group: int) -> int:
        """Return the most bytes of a value that a group stores once for many rows.

        It is the size of the largest dictionary of the wanted columns, 0 without one.
        """
        metadata = self._columns_of(group)
        longest = 0
        for number in self._wanted_columns():
            column = metadata.column(number)
            if column.has_dictionary_page and column.physical_type == "BYTE_ARRAY":
                size = self._dictionary_size(column)
                longest = max(longest, size)
        return longest

    def _dictionary_size(self, column: pq.ColumnChunkMetaData) -> int:
        """Return the unpacked bytes of a dictionary, by the second field of its page's header."""
        head = PreadFile(self.path).read(column.dictionary_page_offset, PAGE_HEAD)
        _, place = _number(head, 1)  # the type of the page
        size, _ = _number(head, place + 1)
        is_header = head[:1] == b"\x15" and head[place : place + 1] == b"\x15"
        return size if is_header else column.total_uncompressed_size

    def _columns_of(self, group: int) -> pq.RowGroupMetaData:
        """Return the metadata of a group, of which the wanted columns may be asked for.

        Asking for damaged metadata of a column ends the process. The reader of rows raises an error
        instead, so it is asked first.
        """
        with self._lock:
            if group not in self._probed and self.rows(group):
                next(self._batches(group, 1, self.wanted, PROBE), None)
                self._probed.add(group)
        return self.file.metadata.row_group(group)

    def _wanted_columns(self) -> list[int]:
        """Return the numbers of the file's columns that hold wanted values."""
        names = tuple(f"{name}." for name in self.wanted)
        schema = self.file.metadata.schema
        paths = [schema.column(number).path for number in range(len(schema))]
        return [number for number, path in enumerate(paths) if f"{path}.".startswith(names)]

    def _batches(
        self, group: int, rows: int, columns: list[str], buffer: int = BUFFER
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of a group, at most ``rows`` at a time."""
        file = pq.ParquetFile(self.path, metadata=self.file.metadata, buffer_size=buffer)
        yield from file.iter_batches(
            batch_size=rows,
            row_groups=[group],
            columns=columns,
            use_threads=False,
        )

    def parts(self, group: int, columns: list[str]) -> Iterator[pa.Table]:
        """Yield columns of a large group in parts."""
        for batch in self._batches(group, self.rows_per_part(group), columns):
            yield pa.Table.from_batches([batch])

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (first rows, bytes) of the blocks of rows that are read as a whole."""
        firsts: list[int] = []
        sizes: list[int] = []
        for group in range(len(self.starts) - 1):
            rows = self.rows(group)
            if not rows:
                continue
            step = self.rows_per_part(group)
            size = self.bytes(group)
            if step < rows:
                step *= PARTS_PER_BLOCK
            for first in range(0, rows, step):
                share = min(step, rows - first) / rows
                firsts.append(int(self.starts[group]) + first)
                sizes.append(int(size * share))
        return np.array(firsts, dtype=np.int64), np.array(sizes, dtype=np.int64)

    def part(self, group: int, place: int) -> tuple[pa.Table, int]:
        """Return the part of a large group that holds its row ``place``, and the place in it."""
        rows = self.rows_per_part(group)
        number, place_in_part = divmod(place, rows)
        with self._lock:
            table = self._parts.get((group, number))
            if table is None:
                table = self._stream_before(group, number).read_until(number)
                self._parts[group, number] = table
            self._parts.move_to_end((group, number))
            while len(self._parts) > FEWEST_PARTS and self._bytes_kept() > PARTS_KEPT:
                self._parts.popitem(last=False)
        return table, place_in_part

    def _bytes_kept(self) -> int:
        return sum(table.nbytes for table in self._parts.values())

    def _stream_before(self, group: int, number: int) -> _Stream:
        """Return the stream of a group that is next to its part ``number``, or a new one."""
        before = [
            stream
            for stream in self._streams
            if stream.group == group and stream.next_part <= number
        ]
        if before:
            stream = max(before, key=lambda stream: stream.next_part)
            self._streams.remove(stream)
        else:
            rows = self.rows_per_part(group)
            stream = _Stream(group, rows, self._batches(group, rows, self.wanted))
        self._streams.append(stream)
        del self._streams[:-STREAMS]
        return stream


class _Stream:
    """Reads the parts of a large group one after another."""

    def __init__(self, group: int, rows: int, batches: Iterator[pa.RecordBatch]):
        self.group = group
        self.next_part = 0
        self._rows = rows
        self._batches = batches
        self._rest: list[pa.RecordBatch] = []

    def read_until(self, number: int) -> pa.Table:
        """Return part ``number``; those before it are passed over."""
        while True:
            table = self._read()
            self.next_part += 1
            if self.next_part > number:
                return table

    def _read(self) -> pa.Table:
        """Return the next part; a batch may have fewer rows than a part."""
        batches = self._rest
        count = sum(batch.num_rows for batch in batches)
        while count < self._rows:
            batch = next(self._batches, None)
            if batch is None:
                break
            batches.append(batch)
            count += batch.num_rows
        table = pa.Table.from_batches(batches)
        self._rest = table.slice(self._rows).to_batches() if count > self._rows else []
        return table.slice(0, self._rows)


def _number(raw: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place in Thrift's compact protocol, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(raw):
            break
        code = raw[place]
        place += 1
        value |= (code & 0x7F) << shift
        if code < 0x80:
            break
    return (value >> 1) ^ -(value & 1), place
