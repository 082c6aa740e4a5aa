"""Short texts for messages."""

import pytest

from dimefm.runtime.text import first_few


@pytest.mark.parametrize(
    ("items", "most", "expected"),
    [
        ([], 3, ""),
        (["a"], 3, "a"),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d"], 3, "a, b, c and 1 more"),
        ((7, 8, 9), 1, "7 and 2 more"),
    ],
)
def test_the_first_few_items_are_named_and_the_others_counted(items, most, expected):
    assert first_few(items, most) == expected
