"""View policies: what they say, what they refuse, and that a draw depends on seed, key, view and
size alone.
"""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.cli.assignments import assignments
from dimefm.data.images.random_crop import RandomCrop
from dimefm.data.views.image_views import SETTINGS, ViewPolicy, row_keys
from dimefm.errors import CacheError, RecipeError
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of

POLICY = ViewPolicy(3, seed=5, scale=(0.2, 0.9), ratio=(0.5, 2.0), flip=0.25)


def parsed(count, *settings):
    """Return the policy of ``--views`` and ``--view-recipe``."""
    return ViewPolicy.parse(
        count, assignments("--view-recipe", settings, "scale=[0.5,1.0]", SETTINGS)
    )


def test_the_defaults_are_those_of_a_recipe():
    policy = ViewPolicy.parse(4, {})
    recipe = Recipe()
    assert (policy.scale, policy.ratio, policy.flip, policy.seed) == (
        recipe.crop_scale,
        recipe.crop_ratio,
        recipe.flip,
        recipe.seed,
    )
    assert policy == ViewPolicy(4)
    assert policy.how() == {
        "count": 4,
        "seed": 0,
        "scale": [0.08, 1.0],
        "ratio": [0.75, 1.3333333333333333],
        "flip": 0.5,
        "version": 1,
    }


def test_settings_are_read_as_toml():
    assert parsed(3, "scale=[0.2, 0.9]", "ratio=[0.5,2]", "flip=0.25", "seed=5") == POLICY
    assert ViewPolicy.parse(None, {}) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("scael=[0.2,1.0]",), "--view-recipe scael: unknown key: did you mean 'scale'?"),
        (("crop_scale=[0.2,1.0]",), "--view-recipe crop_scale: unknown key"),
        (("count=3",), "--view-recipe count: unknown key"),
        (("scale",), r"--view-recipe scale: expected KEY=VALUE as in TOML, e.g. scale=\[0.5,1.0\]"),
        (("scale=3",), "--view-recipe: 'scale' is 3; expected"),
        (("scale=[0.9,0.2]",), "--view-recipe: 'scale' is .*; expected 0 < low <= high <= 1"),
        (("flip=2",), "--view-recipe: 'flip' is 2; expected 0 <= flip <= 1"),
        (("seed='x'",), "--view-recipe: 'seed' is 'x'; expected int"),
    ],
)
def test_mistakes_are_refused_in_one_line(settings, message):
    with pytest.raises(RecipeError, match=message) as error:
        parsed(2, *settings)
    assert "\n" not in str(error.value)


def test_a_recipe_without_a_number_of_views_is_refused():
    with pytest.raises(RecipeError, match="--view-recipe flip=0: .*say how many with --views K"):
        parsed(None, "flip=0")


def test_a_manifest_gives_the_policy_back():
    assert ViewPolicy.from_manifest(json.loads(json.dumps({"views": POLICY.how()}))) == POLICY
    assert ViewPolicy.from_manifest({"views": None}) is ViewPolicy.from_manifest({}) is None


def test_views_of_another_drawing_function_are_refused():
    with pytest.raises(
        CacheError,
        match="drawn by version 2 of the drawing, this dimefm has 1. .*extract the images again",
    ):
        ViewPolicy.from_manifest({"views": {**POLICY.how(), "version": 2}})


@given(
    key=st.text(max_size=8),
    view=st.integers(0, 9),
    width=st.integers(1, 400),
    height=st.integers(1, 400),
)
def test_a_draw_is_a_pure_function_and_its_box_lies_inside(key, view, width, height):
    box, flip = POLICY.draw(key, view, width, height)
    assert (box, flip) == ViewPolicy.from_manifest({"views": POLICY.how()}).draw(
        key, view, width, height
    )
    left, top, right, bottom = box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert isinstance(flip, bool)


def test_seed_key_view_and_size_each_matter():
    draws = [
        policy.draw(key, view, *size)
        for policy in (POLICY, dataclasses.replace(POLICY, seed=6))
        for key in ("a", "b", "1/a")
        for view in (0, 1)
        for size in ((300, 200), (200, 300))
    ]
    assert len({box for box, _ in draws}) == len(draws)


def test_the_number_of_views_does_not_matter_so_that_more_can_be_drawn_later():
    assert dataclasses.replace(POLICY, count=9).draw("a", 2, 300, 200) == POLICY.draw(
        "a", 2, 300, 200
    )


DRAWN = [
    ((234, 36, 497, 313), True),
    ((133, 21, 307, 187), False),
    ((10, 54, 264, 336), False),
    ((63, 59, 409, 353), False),
    ((183, 113, 314, 235), True),
    ((86, 53, 331, 353), True),
    ((143, 12, 334, 250), True),
    ((134, 150, 281, 281), True),
]


def test_draws_are_those_of_version_1():
    """A change here makes every cache of views unusable: raise VERSION with it."""
    draws = [
        ViewPolicy(2, seed).draw(key, view, 500, 375)
        for seed in (0, 7)
        for key in ("x.jpg", "é")
        for view in (0, 1)
    ]
    assert draws == DRAWN


def test_flips_come_as_often_as_asked():
    flips = [POLICY.draw(str(n), 0, 50, 40)[1] for n in range(2000)]
    assert 0.22 < np.mean(flips) < 0.28


def test_boxes_are_those_of_the_augmentation():
    augment = RandomCrop(POLICY.scale, POLICY.ratio, POLICY.flip)
    assert POLICY.draw("k", 2, 90, 70) == augment.draw(90, 70, seed_of(5, 2, "k"))


def test_keys_of_cached_rows_name_their_view():
    assert row_keys(["a", "b"], ViewPolicy(2)) == ["a#0", "a#1", "b#0", "b#1"]
    assert row_keys(["a"], ViewPolicy(1)) == ["a#0"]
    assert row_keys(["a", "b"], None) == ["a", "b"]
