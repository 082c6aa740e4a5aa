"""SampleIndex: the samples of a shard are numbered row by row."""

import pytest

from dimefm.extract.stages.sample_index import SampleIndex


def expected_places(counts):
    """Return (row, place) of every sample when row i gives ``counts[i]`` of them."""
    return [(row, place) for row, count in enumerate(counts) for place in range(count)]


def index_of(counts):
    """Return the index of rows with these counts: by one number where they are equal."""
    if len(set(counts)) == 1:
        return SampleIndex.from_equal_rows(counts, counts[0])
    return SampleIndex.from_counts(counts, counts)


@pytest.mark.parametrize("counts", [[1, 1, 1], [3, 3], [1, 4, 2, 1], [5, 1]])
def test_numbers_and_places_are_each_others_inverse(counts):
    index = index_of(counts)
    places = expected_places(counts)
    assert len(index) == len(places)
    assert [index.locate(number) for number in range(len(index))] == places
    assert [index.number(row, place) for row, place in places] == list(range(len(index)))


def test_equal_rows_are_indexed_as_their_counts_are():
    equal = SampleIndex.from_equal_rows([None] * 4, 3)
    counted = SampleIndex.from_counts([None] * 4, [3, 3, 3, 3])
    assert [equal.locate(number) for number in range(12)] == [
        counted.locate(number) for number in range(12)
    ]
    assert list(equal.starts) == list(counted.starts)


def test_a_shard_without_rows_has_no_samples():
    for index in (SampleIndex.from_equal_rows([], 3), SampleIndex.from_counts([], [])):
        assert len(index) == 0
        assert list(index.by_row(range(0))) == []


@pytest.mark.parametrize(
    ("counts", "numbers", "rows"),
    [
        ([3, 3, 3], range(9), [(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 1, 2])]),
        ([3, 3, 3], [2, 4, 5], [(0, [2]), (1, [1, 2])]),
        ([1, 4, 2, 1], range(8), [(0, [0]), (1, [0, 1, 2, 3]), (2, [0, 1]), (3, [0])]),
        ([1, 4, 2, 1], [2, 4, 5], [(1, [1, 3]), (2, [0])]),
    ],
)
def test_samples_of_a_row_come_together(counts, numbers, rows):
    assert list(index_of(counts).by_row(numbers)) == rows
