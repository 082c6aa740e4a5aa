"""The order of rows: a bijection for every n, each row once an epoch, pure in (seed, step)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.data.order import epochs_of_step, permute, rows_of_step, seed_of


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 255, 256, 257, 1000, 4095, 4096, 4097, 65_537])
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
    np.testing.assert_array_equal(permute(np.array([999, 3, 3, 500]), 1000, 7), whole[[999, 3, 3, 500]])
    np.testing.assert_array_equal(permute(np.arange(1000).reshape(10, 100), 1000, 7), whole.reshape(10, 100))
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
    dealt = np.concatenate([rows_of_step(step, batch, n, seed=5, what="images") for step in range(steps)])
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(dealt[epoch * n : (epoch + 1) * n]), np.arange(n))


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (10, 25), (1, 4), (64, 48)])
def test_each_dealt_row_knows_its_epoch(n, batch):
    steps = -(-n * 4 // batch)
    epochs = np.concatenate([epochs_of_step(step, batch, n) for step in range(steps)])
    np.testing.assert_array_equal(epochs, np.arange(steps * batch) // n)


def test_epochs_seeds_and_purposes_have_orders_of_their_own():
    orders = [
        rows_of_step(step, 100, 100, seed, what).tolist()
        for step in (0, 1)
        for seed in (0, 1)
        for what in ("images", "texts")
    ]
    assert len({tuple(order) for order in orders}) == 8


@given(step=st.integers(0, 10**9), batch=st.integers(1, 50), n=st.integers(1, 10**6), seed=st.integers(0, 2**31))
def test_a_step_is_a_pure_function_of_its_number(step, batch, n, seed):
    found = rows_of_step(step, batch, n, seed, "images")
    assert found.shape == (batch,) and found.dtype == np.int64 and found.min() >= 0 and found.max() < n
    np.testing.assert_array_equal(found, rows_of_step(step, batch, n, seed, "images"))
    halves = [rows_of_step(2 * step + i, batch, n, seed, "images") for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), rows_of_step(step, 2 * batch, n, seed, "images"))


def test_the_order_is_the_one_that_earlier_runs_had():
    assert seed_of(0, "images", 0) == 2568954909826332067
    assert rows_of_step(3, 6, 20, seed=1, what="images").tolist() == [17, 7, 7, 6, 17, 8]


@given(st.lists(st.integers() | st.sampled_from(["a", "b"]), min_size=1, max_size=4))
def test_seed_of_fits_63_bits_and_depends_on_every_part(parts):
    assert 0 <= seed_of(*parts) < 2**63
    for i in range(len(parts)):
        assert seed_of(*parts[:i], "other", *parts[i + 1 :]) != seed_of(*parts)
