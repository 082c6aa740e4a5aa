"""Shares: every shard in exactly one part, and every rank able to do what the others leave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.errors import RecipeError
from dimefm.extract.sharding import Share, share_of


@given(st.integers(0, 40), st.integers(1, 9), st.none() | st.integers(0, 5))
def test_the_parts_are_all_shards_and_no_shard_twice(count, parts, seed):
    found = [shard for part in range(parts) for shard in Share(part, parts, seed).of(range(count))]
    assert sorted(found) == list(range(count))


@given(st.integers(0, 40), st.integers(1, 9), st.none() | st.integers(0, 5))
def test_each_rank_has_all_shards_and_begins_elsewhere(count, ranks, seed):
    orders = [Share(seed=seed, rank=rank, ranks=ranks).of(range(count)) for rank in range(ranks)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count >= ranks:
        assert len({order[0] for order in orders}) == ranks


def test_the_order_of_the_sources_is_kept_unless_a_seed_is_given():
    assert Share().of(range(9)) == list(range(9))
    assert Share(seed=1).of(range(9)) == Share(seed=1).of(range(9)) != list(range(9))


def test_what_the_flag_and_torchrun_say():
    assert share_of("2/8", 5, {}) == Share(2, 8, 5)
    assert share_of(None, None, {"RANK": "1", "WORLD_SIZE": "4"}) == Share(rank=1, ranks=4)


@pytest.mark.parametrize("wrong", ["8/8", "1", "-1/4", "a/b", "0/0", "1/2/3", " 1/2", "１/２"])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(RecipeError, match="expected I/N with 0 <= I < N"):
        share_of(wrong, None, {})
