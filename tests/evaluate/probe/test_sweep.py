"""The search for a rate and a decay makes the toolkit's runs, in its order."""

from pathlib import Path

import numpy as np
import pytest

from dimefm.evaluate.probe.sweep import DECAYS, RATES, sweep

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "elevater_golden.npz")


def peaked(rate_place, decay_place):
    """Return a function that scores runs by their distance from the best one, and its calls."""
    calls = []

    def score_runs(rates, decays):
        calls.append(len(rates))
        rate_distance = np.abs(np.searchsorted(RATES, rates) - rate_place)
        decay_distance = np.abs(np.searchsorted(DECAYS, decays) - decay_place)
        return 1 / (1 + rate_distance + decay_distance)

    return score_runs, calls


def test_runs_and_choice_equal_the_toolkit():
    score_runs, calls = peaked(4, 36)  # 36 is as near to 32 as to 40: the earlier one is kept
    runs, best = sweep(score_runs)
    np.testing.assert_allclose(
        [(run.rate, run.decay) for run in runs], GOLDEN["sweep_calls_lr_wd"], rtol=1e-12
    )
    np.testing.assert_allclose((best.rate, best.decay), GOLDEN["sweep_best"], rtol=1e-12)
    assert calls == [42, 12, 12, 12, 12]


@pytest.mark.parametrize("place", range(9, 89, 5))
def test_a_peak_between_the_first_decays_is_found_in_90_runs(place):
    score_runs, _ = peaked(2, place)
    runs, best = sweep(score_runs)
    assert len(runs) == 90
    assert (best.rate, best.decay) == (RATES[2], DECAYS[place])


@pytest.mark.parametrize("place", [0, 96])
def test_at_the_ends_there_are_decays_on_one_side_only(place):
    score_runs, _ = peaked(0, place)
    runs, best = sweep(score_runs)
    assert len(runs) == 6 * (7 + 4)
    assert best.decay == DECAYS[place]


@pytest.mark.parametrize("score", [0.0, 0.5])
def test_of_equal_scores_the_first_is_kept(score):
    runs, best = sweep(lambda rates, decays: np.full(len(rates), score))
    assert best == runs[0]
    assert (best.rate, best.decay) == (RATES[0], DECAYS[0])
