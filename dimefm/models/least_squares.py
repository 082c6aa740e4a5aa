"""Ridge regression in closed form, from rows that stream by: y = W x, or y = W x + b.

Only the normal equations are kept, float64 [D + 1, D + 1] for D features and a constant, so the
number of rows does not matter. The constant has no penalty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The strengths that are tried, as shares of the mean square of a feature."""


@dataclass(frozen=True)
class Solution:
    """``weight`` [K, D] and ``bias`` [K] (None: none) of the regression, float64.

    ``r2`` is the share of the variance of held-out rows that a solution without these rows
    explains, and ``ridge`` the strength that explains most.
    """

    weight: Tensor
    bias: Tensor | None
    r2: float
    ridge: float


class NormalEquations:
    """Sums over rows x [N, D] with targets y [N, K]: all that a linear regression needs."""

    def __init__(self, features: int, targets: int, device: torch.device):
        size = features + 1
        self.xx = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.xy = torch.zeros(size, targets, dtype=torch.float64, device=device)
        self.yy = torch.zeros(targets, dtype=torch.float64, device=device)

    @property
    def tensors(self) -> list[Tensor]:
        """The sums, which may be added up over processes."""
        return [self.xx, self.xy, self.yy]

    @property
    def rows(self) -> float:
        """The number of rows."""
        return float(self.xx[-1, -1])

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows x [N, D] with targets y [N, K]."""
        x = _with_constant(x.double())
        y = y.double()
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += (y * y).sum(0)

    def joined(self, other: NormalEquations) -> NormalEquations:
        """Return the sums over the rows of both."""
        features = len(self.xx) - 1
        both = NormalEquations(features, len(self.yy), self.xx.device)
        for total, one, two in zip(both.tensors, self.tensors, other.tensors, strict=True):
            total.copy_(one + two)
        return both

    def solve(self, ridge: float, has_bias: bool) -> Tensor:
        """Return [W | b] [K, D + 1] for a strength; b is 0 without a bias."""
        xx = self.xx[:-1, :-1]
        xy = self.xy[:-1]
        means = self.xx[-1, :-1] / self.rows
        target_means = self.xy[-1] / self.rows
        if has_bias:
            xx = xx - self.rows * torch.outer(means, means)
            xy = xy - self.rows * torch.outer(means, target_means)
        mean_square = xx.diagonal().mean().clamp(min=1e-12)
        penalized = xx.clone()
        penalized.diagonal().add_(ridge * mean_square)
        weight = torch.linalg.solve(penalized, xy).T
        bias = torch.zeros_like(target_means)
        if has_bias:
            bias = target_means - weight @ means
        return torch.cat([weight, bias[:, None]], dim=1)

    def r2(self, solution: Tensor) -> float:
        """Return the share of the variance of these rows that [W | b] explains."""
        explained = 2 * (solution * self.xy.T).sum()
        squared = (solution @ self.xx * solution).sum()
        residual = self.yy.sum() - explained + squared
        squares_of_means = (self.xy[-1] ** 2).sum() / self.rows
        variance = self.yy.sum() - squares_of_means
        return float(1 - residual / variance.clamp(min=1e-12))


def solve(kept: NormalEquations, held_out: NormalEquations, has_bias: bool) -> Solution:
    """Return the regression over all rows; ``held_out`` rows choose the strength of the ridge."""
    scores = {}
    for ridge in RIDGES:
        candidate = kept.solve(ridge, has_bias)
        scores[ridge] = held_out.r2(candidate)
    ridge = max(RIDGES, key=scores.__getitem__)
    solution = kept.joined(held_out).solve(ridge, has_bias)
    bias = solution[:, -1] if has_bias else None
    return Solution(solution[:, :-1], bias, scores[ridge], ridge)


def _with_constant(x: Tensor) -> Tensor:
    """Return rows with a 1 behind their features."""
    ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    return torch.cat([x, ones], dim=1)
