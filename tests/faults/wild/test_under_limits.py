"""Nothing that a user downloads takes a minute, two gigabytes or a traceback."""

import re

import pytest

from tests.faults.wild.limited import LimitedRunner
from tests.faults.wild.settings import INPUTS

MEMORY = 2 << 30
LONGEST = 500
TRICKS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
QUICK = {
    "config_of_ten_million_layers",
    "config_that_is_nested",
    "config_that_trusts_remote_code",
    "run_that_is_nested",
    "recipe_that_is_nested",
    "fifo_as_source",
    "list_that_holds_a_star",
    "array_that_says_it_is_huge",
    "arrays_damaged_inside",
}
"""Inputs that are refused at once; the default suite has these."""

PARAMETERS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in INPUTS
]


@pytest.fixture(scope="module")
def runner():
    limited = LimitedRunner()
    yield limited
    limited.close()


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_input_from_the_wild_stays_within_limits(runner, tmp_path, name):
    words = INPUTS[name](tmp_path)
    outcome = runner.run(words, tmp_path)
    shown = f"{outcome.code}, {outcome.seconds:.1f} s, {outcome.peak >> 20} MiB: {outcome.error}"
    assert outcome.code in (0, 1, 2), shown[:2000]
    assert outcome.peak <= MEMORY, shown[:500]
    assert "Traceback" not in outcome.error, shown[:2000]
    assert not TRICKS.search(outcome.output + outcome.error), shown[:500]
    for line in outcome.error.splitlines():
        assert len(line) <= LONGEST + len("Error: "), line[:200]
    if outcome.code == 1:
        assert "Error: " in outcome.error, shown
