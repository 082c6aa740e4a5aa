"""Sparsity: how many parameters a gated tower is expected to lose, and the penalty for too few.

Source: TinyCLIP (ICCV 2023), released src/open_clip/l0module.py:150-225 and
src/training/train.py:260-312. Deviation: a tower that was cut before is measured by the parameters
that it had before its first cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dimefm.models.weights.inheritance.gates import Structure, TowerGates

FIRST_MULTIPLIER = 10.0


@dataclass(frozen=True)
class Whole:
    """A transformer before anything was cut: its width, layers, and heads and units of a layer."""

    width: int
    layers: int
    heads: int
    mlp: int

    @property
    def attention(self) -> int:
        """The parameters of a layer's attention: four matrices with their biases."""
        return 4 * self.width * self.width + 4 * self.width

    @property
    def prunable(self) -> int:
        """The parameters of all layers that gates can remove.

        Norms, embeddings and projections are not among them.
        """
        perceptron = 2 * self.width * self.mlp + self.width + self.mlp
        heads = self.heads * (self.attention // self.heads)
        return self.layers * (perceptron + heads)

    @staticmethod
    def from_structure(structure: Structure) -> Whole:
        """Return the whole of a transformer whose layers are alike, or else the largest of each."""
        heads = max(1, *structure.heads)
        mlp = max(1, *structure.mlp)
        return Whole(structure.width, structure.layers, heads, mlp)


def left(whole: Whole, hidden: Tensor, heads: Tensor, mlp: Tensor) -> Tensor:
    """Return how many parameters are left of a whole.

    ``hidden`` is the number of open channels, ``heads`` and ``mlp`` are those of heads and hidden
    units over all layers.
    """
    per_head = whole.attention / whole.heads
    return hidden * heads * per_head / whole.width + 2 * hidden * mlp


def removed(wholes: Sequence[Whole], counts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the share of the parameters of all towers that is removed.

    ``counts`` has the open channels, heads and hidden units of each tower.
    """
    remaining = torch.stack(
        [left(whole, *open_) for whole, open_ in zip(wholes, counts, strict=True)]
    )
    total = sum(whole.prunable for whole in wholes)
    return 1 - remaining.sum() / total


def removed_from(wholes: Sequence[Whole], structures: Sequence[Structure]) -> float:
    """Return the share of the parameters of all towers that structures lack, 0 of whole ones."""
    if all(map(_is_whole, wholes, structures)):
        return 0.0
    counts = []
    for structure in structures:
        sizes = (structure.width, sum(structure.heads), sum(structure.mlp))
        width, heads, mlp = (torch.tensor(float(size), dtype=torch.float64) for size in sizes)
        counts.append((width, heads, mlp))
    return float(removed(wholes, counts))


def _is_whole(whole: Whole, structure: Structure) -> bool:
    """Tell whether nothing was cut from a tower."""
    heads = (whole.heads,) * whole.layers
    mlp = (whole.mlp,) * whole.layers
    return (structure.width, structure.heads, structure.mlp) == (whole.width, heads, mlp)


def target(step: int, start: float, end: float, warmup: int) -> float:
    """Return the share to be removed at ``step``, from 0: linear from ``start`` to ``end``."""
    progress = min(1.0, step / warmup) if warmup else 1.0
    return start + (end - start) * progress


def penalty(share: Tensor, wanted: float, multipliers: Tensor) -> Tensor:
    """Return the one-sided Lagrangian of a removed share: 0 where it reaches the wanted one.

    ``multipliers`` [2] weigh what is missing and its square; they are trained to raise the penalty.
    """
    missing = (wanted - share).clamp(min=0)
    return multipliers[0] * missing + multipliers[1] * missing**2


def expected_removed(wholes: Sequence[Whole], gates: Sequence[TowerGates]) -> Tensor:
    """Return the share of the parameters of all towers that gates are expected to remove."""
    return removed(wholes, [tower.open_counts() for tower in gates])


def towers_penalty(
    wholes: Sequence[Whole],
    gates: Sequence[TowerGates],
    multipliers: Sequence[Tensor],
    wanted: Sequence[float],
    joint: bool,
) -> tuple[Tensor, Tensor]:
    """Return (the penalty of all towers, the share of their parameters that they are to lose).

    ``wanted`` has a target for each tower. ``joint`` compares the towers together with the mean of
    the targets, by the mean of the multipliers; else each tower is compared alone.
    """
    share = expected_removed(wholes, gates)
    if joint:
        target_of_all = sum(wanted) / len(wanted)
        return penalty(share, target_of_all, torch.stack(list(multipliers)).mean(0)), share
    penalties = []
    for whole, tower, target_of_one, pair in zip(wholes, gates, wanted, multipliers, strict=True):
        own_share = expected_removed([whole], [tower])
        penalties.append(penalty(own_share, target_of_one, pair))
    return torch.stack(penalties).sum(), share
