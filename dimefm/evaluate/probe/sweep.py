"""The toolkit's search for a learning rate and a weight decay: 6 rates with 15 decays each.

For each rate, seven decays are tried that are far apart, then two on both sides of the best one,
at half the distance each time. All rates are searched side by side, so that the runs of a round can
be trained together. The runs and the choice are those of the toolkit, which tries one after
another.

Source: Elevater_Toolkit_IC ``evaluation/full_model_finetune.py`` (hyperparameter_sweep,
hyperparameter_sweep_lr).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATES = np.logspace(-6, -1, num=6)
DECAYS = np.logspace(-6, 6, num=97)
FIRST_PLACES = range(0, len(DECAYS), 16)
SPANS = (8, 4, 2, 1)

ScoreRuns = Callable[[list[float], list[float]], np.ndarray]
"""Returns a score, 0 or more, for each pair of a learning rate and a weight decay."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its learning rate and weight decay, and its score on validation."""

    rate: float
    decay: float
    score: float


def sweep(score_runs: ScoreRuns) -> tuple[list[SweepRun], SweepRun]:
    """Return all runs in the toolkit's order, and the best one; of equal scores the earlier.

    ``score_runs`` is called once a round, five times. There are 90 runs, or less when the best
    decay is the smallest or largest one. When no score is above 0, the first run is the best.
    """
    searches = [_DecaySearch(rate) for rate in RATES]
    for span in (None, *SPANS):
        places_of_search = [search.next_places(span) for search in searches]
        rates: list[float] = []
        decays: list[float] = []
        for search, places in zip(searches, places_of_search, strict=True):
            rates += [search.rate] * len(places)
            decays += [float(DECAYS[place]) for place in places]
        scores = iter(score_runs(rates, decays))
        for search, places in zip(searches, places_of_search, strict=True):
            for place in places:
                search.add(place, float(next(scores)))
    runs = [run for search in searches for run in search.runs]
    return runs, max(runs, key=lambda run: run.score)


class _DecaySearch:
    """The search for the weight decay at one learning rate."""

    def __init__(self, rate: float):
        self.rate = float(rate)
        self.runs: list[SweepRun] = []
        self._peak = 0
        self._peak_score = 0.0

    def next_places(self, span: int | None) -> list[int]:
        """Return the places in DECAYS to try next; ``span`` None begins the search."""
        if span is None:
            return list(FIRST_PLACES)
        left = max(self._peak - span, 0)
        right = min(self._peak + span, len(DECAYS) - 1)
        return [place for place in (left, right) if place != self._peak]

    def add(self, place: int, score: float) -> None:
        """Add the score of the run with the decay at ``place``."""
        self.runs.append(SweepRun(self.rate, float(DECAYS[place]), score))
        if score > self._peak_score:
            self._peak = place
            self._peak_score = score
