"""Random crops: a pure function of (width, height, seed); the box stays inside and has the asked
share and ratio.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.data.images.random_crop import RandomCrop


def test_the_same_seed_gives_the_same_crop_and_another_seed_another():
    before = np.random.get_state()[1].copy()
    draws = [RandomCrop().draw(60, 57, seed) for seed in range(8)]
    assert draws == [RandomCrop().draw(60, 57, seed) for seed in range(8)]
    assert len(set(draws)) == 8
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    low=st.floats(0.01, 1.0),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.2, 0.3), (5.0, 9.0)]),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_box_lies_inside_and_is_not_empty(width, height, low, ratio, seed):
    left, top, right, bottom = RandomCrop(scale=(low, 1.0), ratio=ratio)._box(
        width, height, np.random.default_rng(seed)
    )
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_boxes_have_the_asked_share_and_ratio():
    augment = RandomCrop(scale=(0.2, 0.5), ratio=(0.5, 2.0))
    boxes = [augment._box(400, 300, np.random.default_rng(seed)) for seed in range(400)]
    shares = [(r - x) * (b - y) / 120_000 for x, y, r, b in boxes]
    ratios = [(r - x) / (b - y) for x, y, r, b in boxes]
    assert 0.19 < min(shares) < 0.23 and 0.47 < max(shares) < 0.51
    assert 0.49 < min(ratios) < 0.55 and 1.8 < max(ratios) < 2.04


@pytest.mark.parametrize(("flip", "expected"), [(0.0, (0, 0)), (1.0, (200, 200)), (0.5, (70, 130))])
def test_flips_come_as_often_as_asked(flip, expected):
    flips = sum(RandomCrop(flip=flip).draw(32, 32, seed)[1] for seed in range(200))
    assert expected[0] <= flips <= expected[1]
