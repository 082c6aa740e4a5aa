"""Gates: numbers from 0 to 1 that a tower's channels, heads and hidden units are multiplied by.

A gate is drawn from the hard-concrete distribution (Louizos et al., 2018, "Learning Sparse Neural
Networks through L0 Regularization"). Its parameter alpha says how likely the gate is open, and is
trained together with the weights. A gate may be exactly 0, so what it multiplies can be cut.

Source: TinyCLIP (ICCV 2023), released src/open_clip/l0module.py. Deviations: all processes and
micro-batches of a step have the same gates, where the release draws them in each process; and a
tower that was cut before has gates only on what is left, where the release gives what was cut gates
that are nearly closed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOW, HIGH = -0.1, 1.1
"""The range that a drawn number is stretched to before it is limited to 0 and 1."""

TEMPERATURE = 2 / 3
EPSILON = 1e-6
SETTLED_FACTOR = 0.8
FIRST_ALPHA = 10.0
LEAST_ALPHA = math.log(0.01)
LARGEST_ALPHA = math.log(100.0)


@dataclass(frozen=True)
class Structure:
    """Sizes of a transformer: its width, and the heads and hidden units of each layer."""

    width: int
    head_width: int
    heads: tuple[int, ...]
    mlp: tuple[int, ...]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.heads)


@dataclass(frozen=True)
class Masks:
    """The gates of a tower: ``hidden`` [W], and for each layer ``heads`` [H] and ``mlp`` [M]."""

    hidden: Tensor
    heads: Sequence[Tensor]
    mlp: Sequence[Tensor]


def drawn(alpha: Tensor, noise: Tensor) -> Tensor:
    """Return gates drawn with ``noise``, uniform numbers between 0 and 1 of the same shape."""
    soft = torch.sigmoid((torch.logit(noise) + alpha) / TEMPERATURE)
    stretched = soft * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def open_probability(alpha: Tensor) -> Tensor:
    """Return the probability that a drawn gate is not 0."""
    edge = math.log(-LOW / HIGH) * TEMPERATURE
    closed = torch.sigmoid(edge - alpha).clamp(EPSILON, 1 - EPSILON)
    return 1 - closed


def settled(alpha: Tensor, at_least: int = 0) -> Tensor:
    """Return the gates [N] that a tower is cut by: as many are open as are expected to be.

    The others, those of the smallest alpha, are 0. ``at_least`` is how many are open in any case.
    """
    gates = torch.sigmoid(SETTLED_FACTOR * alpha / TEMPERATURE)
    expected = float(open_probability(alpha.detach()).sum())
    closed = round(len(alpha) - expected)
    closed = min(closed, len(alpha) - at_least)
    smallest = torch.argsort(gates, stable=True)[:closed]
    return gates.index_fill(0, smallest, 0.0)


def _names(structure: Structure) -> Iterator[tuple[str, int]]:
    """Return the name and number of gates of each group, those without gates left out."""
    yield "hidden", structure.width
    for layer in range(structure.layers):
        for part, counts in (("heads", structure.heads), ("mlp", structure.mlp)):
            if counts[layer]:
                yield f"{part}_{layer}", counts[layer]


class TowerGates(nn.Module):
    """The gates of one tower of a ``structure``.

    In training mode :meth:`masks` returns drawn gates, which stay the same until the next
    :meth:`draw`; in evaluation mode it returns the settled ones.
    """

    def __init__(self, structure: Structure):
        super().__init__()
        self.structure = structure
        self.alpha = nn.ParameterDict()
        for name, count in _names(structure):
            self.alpha[name] = nn.Parameter(torch.full((count,), FIRST_ALPHA))
        self.noise: dict[str, Tensor] = {}

    def draw(self, generator: torch.Generator) -> None:
        """Draw new noise from a generator of the CPU, so gates are the same on every machine."""
        for name, alpha in self.alpha.items():
            uniform = torch.rand(len(alpha), generator=generator)
            bounded = EPSILON + (1 - 2 * EPSILON) * uniform
            self.noise[name] = bounded.to(alpha.device)

    def masks(self) -> Masks:
        """Return the gates of the tower: the drawn ones in training mode, else the settled."""
        structure = self.structure
        heads = []
        mlp = []
        for layer in range(structure.layers):
            heads.append(self._group(f"heads_{layer}"))
            mlp.append(self._group(f"mlp_{layer}"))
        return Masks(self._group("hidden"), heads, mlp)

    def _group(self, name: str) -> Tensor:
        """Return the gates of a group, an empty tensor when the tower has none of that name."""
        if name not in self.alpha:
            return self.alpha["hidden"].new_zeros(0)
        alpha = self.alpha[name]
        if self.training:
            return drawn(alpha, self.noise[name])
        return settled(alpha, at_least=1 if name == "hidden" else 0)

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring alphas back into their bounds, after an optimizer step."""
        for alpha in self.alpha.values():
            alpha.clamp_(LEAST_ALPHA, LARGEST_ALPHA)

    def open_counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the expected numbers of open channels, heads and hidden units, over layers."""
        totals = {}
        for part in ("hidden", "heads", "mlp"):
            scores = [self.alpha["hidden"].new_zeros(1)]
            for name, alpha in self.alpha.items():
                if name.partition("_")[0] == part:
                    scores.append(open_probability(alpha))
            totals[part] = torch.cat(scores).sum()
        return totals["hidden"], totals["heads"], totals["mlp"]
