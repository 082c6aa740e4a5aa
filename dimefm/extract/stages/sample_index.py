"""The samples of one shard: which source row each is made of."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dimefm.data import Row, Shard
from dimefm.data.rows import check_key


@dataclass(frozen=True)
class SampleIndex:
    """The samples of one shard, numbered from 0 in the order of its source rows.

    A source row gives one or more samples, for example its views or its captions.
    ``starts[row]`` is the number of the first sample of a source row, and the last element of
    ``starts`` the number of all samples. It is a range where all rows give equally many.
    """

    shard: Shard
    starts: Sequence[int]

    @staticmethod
    def from_equal_rows(shard: Shard, samples_per_row: int) -> SampleIndex:
        """Return the index of a shard whose source rows all give ``samples_per_row`` samples."""
        total = len(shard) * samples_per_row
        return SampleIndex(shard, range(0, total + 1, samples_per_row))

    @staticmethod
    def from_counts(shard: Shard, counts: Sequence[int]) -> SampleIndex:
        """Return the index of a shard whose source rows give ``counts`` samples, from 1 up."""
        starts = list(itertools.accumulate(counts, initial=0))
        return SampleIndex(shard, starts)

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, row: int) -> Row:
        """Return a source row.

        Raises BadRow when it cannot be read, or no cache can hold its key.
        """
        content = self.shard[row]
        check_key(content.key)
        return content

    def number(self, row: int, place: int) -> int:
        """Return the number of the sample at ``place``, from 0, of a source row."""
        return self.starts[row] + place

    def locate(self, number: int) -> tuple[int, int]:
        """Return (source row, place) of a sample."""
        if isinstance(self.starts, range):
            return divmod(number, self.starts.step)
        row = bisect.bisect_right(self.starts, number) - 1
        return row, number - self.starts[row]

    def by_row(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield (source row, places of its samples) for the samples ``numbers``, ascending.

        Samples of one source row come together, so that the row is read once.
        """
        located = map(self.locate, numbers)
        for row, samples in itertools.groupby(located, key=operator.itemgetter(0)):
            places = [place for _, place in samples]
            yield row, places
