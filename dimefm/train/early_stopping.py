"""What is measured while a run trains: which weights were the best so far, and when to stop
early.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dimefm.cache import EncoderCard
from dimefm.errors import RecipeError
from dimefm.recipe import Recipe

Score = Callable[[nn.Module], dict[str, float]]
"""Measures a model (what a run's Task holds): benchmark -> its main metric, 0 to 1. The model is
left as it was.
"""

Scorer = Callable[[Recipe, EncoderCard | None], Score]
"""Makes a Score of a recipe and its (first) teacher, None where there is none; raises a DimefmError
when it cannot be.
"""


class EarlyStopping:
    """Measures a run on its way and remembers the best.

    ``best`` is the highest mean of the scores so far, at step ``best_step`` with the scores
    ``best_scores``; ``without`` counts the evaluations since. A mean as high as the best one is no
    improvement.
    """

    def __init__(self, score: Score, patience: int | None = None):
        self.score, self.patience = score, patience
        self.best: float | None = None
        self.last = 0.0
        self.best_step, self.without = 0, 0
        self.best_scores: dict[str, float] = {}

    @classmethod
    def of(
        cls, recipe: Recipe, scorer: Scorer | None, teacher: EncoderCard | None
    ) -> EarlyStopping | None:
        """Return the watch that ``recipe`` asks for, None when it asks for none.

        Raises RecipeError when there is no ``scorer``, and what the scorer raises.
        """
        if recipe.eval_root is None:
            return None
        if scorer is None:
            raise RecipeError(
                "the recipe has 'eval_root', but train() was given no scorer; pass"
                " dimefm.train.online_eval.scorer"
            )
        return cls(scorer(recipe, teacher), recipe.patience)

    def measure(self, step: int, model: nn.Module) -> dict[str, float]:
        """Return what to log of ``model`` after ``step`` steps: ``eval/NAME`` of each benchmark and
        ``eval/mean``.
        """
        scores = self.score(model)
        mean = sum(scores.values()) / len(scores)
        self.last = mean
        self.without += 1
        if self.best is None or mean > self.best:
            self.best, self.best_step, self.best_scores, self.without = mean, step, scores, 0
        return {**{f"eval/{name}": value for name, value in scores.items()}, "eval/mean": mean}

    def describe(self) -> str:
        """Return what the last evaluation found, for people."""
        best = (
            "the best so far"
            if not self.without
            else f"best {100 * (self.best or 0):.2f} % after step {self.best_step:,}"
        )
        return f"mean score {100 * self.last:.2f} % ({best})"

    def improved(self, step: int) -> bool:
        """Tell whether the evaluation after ``step`` steps gave the best mean so far."""
        return self.best is not None and self.best_step == step

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations as ``patience`` allows brought no improvement."""
        return self.patience is not None and self.without >= self.patience

    def record(self) -> dict:
        """Return the best so far for people and ``run.json``; {} before the first evaluation."""
        if self.best is None:
            return {}
        return {"step": self.best_step, "mean": self.best, "scores": self.best_scores}

    def state(self) -> dict:
        """Return what a checkpoint holds of the watch, as JSON values."""
        return {"best": self.record(), "without": self.without}

    def restore(self, state: dict) -> None:
        """Go on where ``state`` was taken."""
        self.without, best = state["without"], state["best"]
        if best:
            self.best, self.best_step, self.best_scores = best["mean"], best["step"], best["scores"]
