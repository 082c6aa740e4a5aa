"""The order of rows: a bijection for every n, each row once an epoch, pure in (seed, position)."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimefm.runtime.seeding import permute, seed_of
from dimefm.train.inputs.sampler import (
    PATTERNS,
    Shuffled,
    ShuffledBlocks,
    Spans,
    WeightedOrder,
    quotas_of,
)

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)
SHARES = st.lists(st.floats(1, 20), min_size=2, max_size=5)
SEEDS = st.integers(0, 2**31)


def runs(sizes, gap=0):
    """Runs of rows of these sizes, with gaps between them."""
    return Spans.from_sizes(np.append(0, np.cumsum(np.array(sizes) + gap))[:-1], np.array(sizes))


def rows_in(spans):
    return [
        row
        for first, size in zip(spans.firsts, np.diff(spans.ends), strict=True)
        for row in range(first, first + size)
    ]


@st.composite
def orders(draw):
    """An order of rows, with the rows that it deals: shuffled, in blocks, or a mix of both."""
    kind, seed = draw(st.sampled_from(["rows", "spans", "blocks", "mixed"])), draw(SEEDS)
    if kind == "rows":
        n = draw(st.integers(10, 500))
        return Shuffled(n, seed, "images")
    spans = runs(draw(SIZES), draw(st.integers(0, 3)))
    if kind == "spans":
        return Shuffled(spans, seed, "images")
    blocks = ShuffledBlocks(spans, draw(st.integers(1, 5)), seed, "images")
    return (
        blocks
        if kind == "blocks"
        else WeightedOrder([blocks, Shuffled(50, seed, "b")], draw(SHARES)[:2], seed, "images")
    )


@pytest.mark.parametrize(
    "n", [*range(1, 70), 127, 128, 129, 255, 256, 257, 1000, 4095, 4096, 4097, 65_537]
)
def test_permute_is_a_bijection(n):
    for key in (0, 1, 2**62):
        np.testing.assert_array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(n=st.integers(1, 2**40), key=st.integers(0, 2**63 - 1), seed=st.integers(0, 1000))
def test_permute_stays_inside_and_apart_for_large_n(n, key, seed):
    positions = np.unique(np.random.default_rng(seed).integers(0, n, 50))
    found = permute(positions, n, key)
    assert found.min() >= 0 and found.max() < n
    assert len(np.unique(found)) == len(positions)


def test_permute_depends_on_each_position_only_and_on_the_key():
    whole = permute(np.arange(1000), 1000, 7)
    np.testing.assert_array_equal(
        permute(np.array([999, 3, 3, 500]), 1000, 7), whole[[999, 3, 3, 500]]
    )
    np.testing.assert_array_equal(
        permute(np.arange(1000).reshape(10, 100), 1000, 7), whole.reshape(10, 100)
    )
    assert (permute(np.arange(1000), 1000, 8) != whole).mean() > 0.95


def test_permuted_rows_are_spread_evenly():
    first = permute(np.arange(5000), 50_000, 3)
    counts = np.histogram(first, bins=10, range=(0, 50_000))[0]
    assert (abs(counts - 500) < 5 * np.sqrt(500)).all()
    assert abs(np.corrcoef(np.arange(5000), first)[0, 1]) < 0.06


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (10, 25), (1, 4), (7, 1), (64, 48)])
def test_every_row_is_dealt_once_an_epoch(n, batch):
    epochs = 4
    steps = -(-n * epochs // batch)
    order = Shuffled(n, 5, "images")
    dealt = np.concatenate([order.take(step * batch, batch)[0] for step in range(steps)])
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(dealt[epoch * n : (epoch + 1) * n]), np.arange(n))


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (10, 25), (1, 4), (64, 48)])
def test_each_dealt_row_knows_its_epoch(n, batch):
    steps = -(-n * 4 // batch)
    order = Shuffled(n, 5, "images")
    epochs = np.concatenate([order.take(step * batch, batch)[1] for step in range(steps)])
    np.testing.assert_array_equal(epochs, np.arange(steps * batch) // n)


def test_epochs_seeds_and_purposes_have_orders_of_their_own():
    orders = [
        Shuffled(100, seed, what).take(step * 100, 100)[0].tolist()
        for step in (0, 1)
        for seed in (0, 1)
        for what in ("images", "texts")
    ]
    assert len({tuple(order) for order in orders}) == 8


def step_of(step, batch, n, seed):
    """Return the rows of a step whose batches are of one size."""
    return Shuffled(n, seed, "images").take(step * batch, batch)[0]


@given(
    step=st.integers(0, 10**9),
    batch=st.integers(1, 50),
    n=st.integers(1, 10**6),
    seed=st.integers(0, 2**31),
)
def test_a_step_is_a_pure_function_of_its_number(step, batch, n, seed):
    found = step_of(step, batch, n, seed)
    assert (
        found.shape == (batch,) and found.dtype == np.int64 and found.min() >= 0 and found.max() < n
    )
    np.testing.assert_array_equal(found, step_of(step, batch, n, seed))
    halves = [step_of(2 * step + i, batch, n, seed) for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), step_of(step, 2 * batch, n, seed))


def test_the_order_is_the_one_that_earlier_runs_had():
    assert seed_of(0, "images", 0) == 2568954909826332067
    assert step_of(3, 6, 20, 1).tolist() == [17, 7, 7, 6, 17, 8]


@given(st.lists(st.integers() | st.sampled_from(["a", "b"]), min_size=1, max_size=4))
def test_seed_of_fits_63_bits_and_depends_on_every_part(parts):
    assert 0 <= seed_of(*parts) < 2**63
    for i in range(len(parts)):
        assert seed_of(*parts[:i], "other", *parts[i + 1 :]) != seed_of(*parts)


@settings(max_examples=50)
@given(order=orders(), cuts=st.lists(st.integers(0, 400), max_size=6), first=st.integers(0, 3000))
def test_any_pieces_of_a_range_give_the_same_rows(order, cuts, first):
    whole = order.take(first, 400)
    edges = [0, *sorted(cuts), 400]
    pieces = [order.take(first + a, b - a) for a, b in itertools.pairwise(edges)]
    for found, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        assert found.dtype == np.int64 and found.shape == (400,)
        np.testing.assert_array_equal(found, np.concatenate(parts))


@settings(max_examples=50)
@given(n=st.integers(20, 900), first=st.integers(0, 2000), count=st.integers(0, 500), seed=SEEDS)
def test_shuffled_rows_know_their_epoch_from_anywhere(n, first, count, seed):
    epochs = Shuffled(n, seed, "texts").take(first, count)[1]
    np.testing.assert_array_equal(epochs, np.arange(first, first + count) // n)


@given(sizes=SIZES, gap=st.integers(0, 3), window=st.integers(1, 20), seed=SEEDS)
def test_blocks_and_spans_deal_each_of_their_rows_once_an_epoch(sizes, gap, window, seed):
    spans = runs(sizes, gap)
    for order in (ShuffledBlocks(spans, window, seed, "images"), Shuffled(spans, seed, "images")):
        assert len(order) == sum(sizes)
        rows, epochs = order.take(0, 3 * len(order))
        np.testing.assert_array_equal(epochs, np.repeat(np.arange(3), len(order)))
        for epoch in rows.reshape(3, -1):
            assert sorted(epoch.tolist()) == rows_in(spans)


def test_a_window_holds_the_rows_of_its_blocks_alone():
    order = ShuffledBlocks(runs([10] * 12), 3, 0, "images")
    for epoch in (0, 1):
        windows = order.take(epoch * 120, 120)[0].reshape(4, 30) // 10
        assert [len(set(window)) for window in windows.tolist()] == [3] * 4
        assert len({block for window in windows.tolist() for block in set(window)}) == 12


def test_blocks_are_mixed_anew_in_each_epoch():
    """2000 blocks of 50 rows, 40 at a time: batches are from all over, and rows of one block do not
    stay together.
    """
    order = ShuffledBlocks(runs([50] * 2000), 40, 1, "images")
    first, second = order.take(0, 100_000)[0].reshape(2, -1)[0], order.take(100_000, 50_000)[0]
    for rows in (first, second):
        batches = rows[:49_920].reshape(-1, 256) // 50
        distinct = [len(set(batch)) for batch in batches.tolist()]
        assert np.mean(distinct) > 38  # of 40: each block is expected in a batch 6 times
        assert np.mean(np.diff(rows) == 1) < 0.01
        counts = np.histogram(rows, bins=10, range=(0, 100_000))[0]
        assert (abs(counts - 5000) < 5 * np.sqrt(5000 * 50)).all()  # a block comes as a whole
    together = {
        tuple(sorted(set(window))) for window in (first[:50_000].reshape(-1, 2000) // 50).tolist()
    }
    again = {
        tuple(sorted(set(window))) for window in (second[:50_000].reshape(-1, 2000) // 50).tolist()
    }
    assert not together & again


@settings(max_examples=20)
@given(shares=SHARES, seed=SEEDS, start=st.integers(0, 50))
def test_a_mix_has_its_proportions_in_each_pattern(shares, seed, start):
    lists = [
        Shuffled(Spans.from_sizes([1000 * i], [600 + 30 * i]), seed, f"images/{i}")
        for i in range(len(shares))
    ]
    order = WeightedOrder(lists, shares, seed, "images")
    length = int(order.quotas.sum())
    assert length in PATTERNS
    np.testing.assert_array_less(abs(order.quotas - np.array(shares) / sum(shares) * length), 1)
    rows, _ = order.take(start * length, 2 * length)
    for pattern in rows.reshape(2, length) // 1000:
        np.testing.assert_array_equal(np.bincount(pattern, minlength=len(shares)), order.quotas)


@settings(max_examples=20)
@given(shares=SHARES, seed=SEEDS)
def test_each_list_of_a_mix_is_dealt_in_its_own_order_from_its_beginning(shares, seed):
    lists = [
        Shuffled(Spans.from_sizes([1000 * i], [600 + 30 * i]), seed, f"images/{i}")
        for i in range(len(shares))
    ]
    rows, epochs = WeightedOrder(lists, shares, seed, "images").take(0, 2500)
    for i, own in enumerate(lists):
        here = rows // 1000 == i
        for found, expected in zip(
            (rows[here], epochs[here]), own.take(0, int(here.sum())), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_a_mix_is_arranged_anew_in_each_pattern_and_without_rhythm():
    order = WeightedOrder(
        [Shuffled(100, 0, "a"), Shuffled(Spans.from_sizes([100], [100]), 0, "b")],
        [0.5, 0.5],
        3,
        "images",
    )
    patterns = order.take(0, 20_000)[0].reshape(20, 1000) < 100
    assert len({pattern.tobytes() for pattern in patterns}) == 20
    halves = patterns[:, :500].sum(1)  # hypergeometric, standard deviation 7.9
    assert abs(halves - 250).max() < 40 and halves.std() > 2
    flips = (patterns[:, 1:] != patterns[:, :-1]).mean()
    assert 0.45 < flips < 0.55


@pytest.mark.parametrize(
    ("shares", "quotas"),
    [
        ([0.7, 0.3], [700, 300]),
        ([2, 1], [667, 333]),
        ([1, 1, 1], [334, 333, 333]),
        ([0.29, 0.71], [290, 710]),
        ([1], [1000]),
        ([999, 1], [9990, 10]),
        ([99_999, 1], [99_999, 1]),
        ([1e9, 1], [100_000, 0]),
    ],
)
def test_quotas_are_those_of_largest_remainders(shares, quotas):
    assert quotas_of(shares).tolist() == quotas


@pytest.mark.parametrize("shares", [[], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_shares_that_cannot_be_are_a_value_error(shares):
    with pytest.raises(ValueError, match="shares"):
        quotas_of(shares)


def test_orders_of_nothing_are_a_value_error():
    nothing = Spans.from_sizes([3, 4], [0, 0])
    for make in (
        lambda: Shuffled(0, 0, "a"),
        lambda: Shuffled(nothing, 0, "a"),
        lambda: ShuffledBlocks(nothing, 2, 0, "a"),
    ):
        with pytest.raises(ValueError, match="no rows"):
            make()
    for shares in ([1, 1], [1e9, 1]):
        with pytest.raises(ValueError, match="orders with"):
            WeightedOrder([Shuffled(3, 0, "a")] * (3 if shares == [1, 1] else 2), shares, 0, "a")


def test_forty_million_rows_need_no_index():
    n, group = 40_000_000, 1000
    tracemalloc.start()
    try:
        blocks = ShuffledBlocks(
            Spans.from_sizes(np.arange(0, n, group), np.full(n // group, group)), 16, 0, "images"
        )
        halves = [
            Shuffled(Spans.from_sizes([start], [n // 2]), 0, f"images/{start}")
            for start in (0, n // 2)
        ]
        for order in (
            Shuffled(n, 0, "images"),
            blocks,
            WeightedOrder(halves, [0.7, 0.3], 0, "images"),
        ):
            for first in (0, n - 300, 9 * n + 17):
                rows, _ = order.take(first, 640)
                assert rows.min() >= 0 and rows.max() < n
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50 * n // group + 500_000  # 2 MB of blocks
    assert peak < 10_000_000
