"""Evaluate the student during training, remember the best weights and decide when to stop early."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dimefm.cache import EncoderCard
from dimefm.errors import RecipeError
from dimefm.recipe import Recipe

Score = Callable[[nn.Module], dict[str, float]]
"""Measures a model (the ``model`` of a run's Task): benchmark -> its main metric, 0 to 1. The model
is unchanged afterwards.
"""

Scorer = Callable[[Recipe, EncoderCard | None], Score]
"""Makes a Score from a recipe and the card of its first teacher, None without teachers. Raises a
DimefmError when the data or the teacher cannot be used.
"""


class EarlyStopping:
    """Evaluates the student and remembers the best evaluation.

    ``best`` is the highest mean score so far, ``best_step`` its step and ``best_scores`` its
    scores; ``without`` counts the evaluations since. A mean as high as the best is no improvement.
    """

    def __init__(self, score: Score, patience: int | None = None):
        self.score = score
        self.patience = patience
        self.last = 0.0
        self.best: float | None = None
        self.best_step = 0
        self.best_scores: dict[str, float] = {}
        self.without = 0

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, scorer: Scorer | None, teacher: EncoderCard | None
    ) -> EarlyStopping | None:
        """Return the evaluation that ``recipe`` asks for, None when it has no ``eval_root``.

        Raises RecipeError when there is no ``scorer``, and the errors of the scorer.
        """
        if recipe.eval_root is None:
            return None
        if scorer is None:
            raise RecipeError(
                "the recipe has 'eval_root', but train() was given no scorer. Fix: pass"
                " dimefm.train.online_eval.scorer"
            )
        return cls(scorer(recipe, teacher), recipe.patience)

    def measure(self, step: int, model: nn.Module) -> dict[str, float]:
        """Evaluate ``model`` after ``step`` steps and return the figures to log.

        The figures are ``eval/NAME`` for each benchmark and ``eval/mean``.
        """
        scores = self.score(model)
        mean = sum(scores.values()) / len(scores)
        self.last = mean
        self.without += 1
        if self.best is None or mean > self.best:
            self.best = mean
            self.best_step = step
            self.best_scores = scores
            self.without = 0
        figures = {f"eval/{name}": value for name, value in scores.items()}
        figures["eval/mean"] = mean
        return figures

    def describe(self) -> str:
        """Return a human-readable summary of the last evaluation."""
        comparison = "the best so far"
        if self.without:
            best = 100 * (self.best or 0)
            comparison = f"best {best:.2f} % after step {self.best_step:,}"
        return f"mean score {100 * self.last:.2f} % ({comparison})"

    def improved(self, step: int) -> bool:
        """Return whether the evaluation after ``step`` steps is the best so far."""
        return self.best is not None and self.best_step == step

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` evaluations in a row brought no improvement."""
        return self.patience is not None and self.without >= self.patience

    def record(self) -> dict:
        """Return the best evaluation for ``run.json``, {} before the first evaluation."""
        if self.best is None:
            return {}
        return {"step": self.best_step, "mean": self.best, "scores": self.best_scores}

    def state(self) -> dict:
        """Return the state that a checkpoint keeps, as JSON values."""
        return {"best": self.record(), "without": self.without}

    def restore(self, state: dict) -> None:
        """Continue from a ``state`` of a checkpoint."""
        self.without = state["without"]
        best = state["best"]
        if best:
            self.best = best["mean"]
            self.best_step = best["step"]
            self.best_scores = best["scores"]
