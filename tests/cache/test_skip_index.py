"""SkipIndex: stored rows and source rows convert into one another."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dimefm.cache.skip_index import SkipIndex


@given(st.lists(st.booleans(), max_size=60))
def test_stored_rows_number_the_kept_source_rows_in_order(kept):
    skipped_rows = [row for row, keep in enumerate(kept) if not keep]
    source = np.array([row for row, keep in enumerate(kept) if keep], dtype=np.int64)
    stored = np.arange(len(source))
    index = SkipIndex.from_rows(skipped_rows)

    assert index.to_source(stored).tolist() == source.tolist()
    assert index.to_stored(source).tolist() == stored.tolist()


@given(st.sets(st.integers(0, 10**12), max_size=20), st.lists(st.integers(0, 10**12), min_size=1))
def test_rows_in_any_order_come_back(skipped_rows, stored):
    index = SkipIndex.from_rows(sorted(skipped_rows))
    stored = np.array(stored, dtype=np.int64)

    source = index.to_source(stored)

    assert source.dtype == np.int64
    assert not set(source.tolist()) & skipped_rows
    assert index.to_stored(source).tolist() == stored.tolist()


def test_the_docstring_example():
    index = SkipIndex.from_rows((1, 3))
    assert index.to_source(np.array([0, 1, 2])).tolist() == [0, 2, 4]
    assert index.to_stored(np.array([4, 0, 2])).tolist() == [2, 0, 1]


def test_an_index_survives_pickling_after_use():
    index = SkipIndex.from_rows([0, 5])
    index.to_source(np.arange(3))
    assert pickle.loads(pickle.dumps(index)).to_source(np.arange(5)).tolist() == [1, 2, 3, 4, 6]
