"""A model whose towers are computed through gates, while the gates and the weights are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dimefm.models.weights.inheritance.gates import Masks, TowerGates
from dimefm.models.weights.inheritance.layout import (
    Tower,
    TowerName,
    gated_weight,
    place_of,
    structure_of,
    tower_of,
)
from dimefm.models.weights.inheritance.sparsity import FIRST_MULTIPLIER


class OpenChannels:
    """The channels of a tower that are open now, ``index`` [K]; None when all are."""

    def __init__(self) -> None:
        self.index: Tensor | None = None


class GatedNorm(nn.LayerNorm):
    """A layer norm over the open channels; the closed ones stay 0."""

    def __init__(self, norm: nn.LayerNorm, channels: OpenChannels):
        super().__init__(norm.normalized_shape, norm.eps)
        self.weight = norm.weight
        self.bias = norm.bias
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., W], normalized."""
        index = self.channels.index
        if index is None:
            whole = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
            return whole.to(x.dtype)
        weight = self.weight[index]
        bias = None if self.bias is None else self.bias[index]
        normalized = F.layer_norm(x[..., index], (len(index),), weight, bias, self.eps)
        return torch.zeros_like(x).index_copy(-1, index, normalized.to(x.dtype))


class _Call(nn.Module):
    """A function of a model, as the module that ``functional_call`` wants."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """Return the function's result."""
        return self.function(*inputs)


class Gates(nn.Module):
    """The gates of a model's towers, and the multipliers of the penalty for each tower.

    Making them replaces the norms of the gated towers of ``model`` by :class:`GatedNorm`, whose
    weights have the same names. Raises ModelError for a tower that gates do not fit.
    """

    def __init__(self, model: nn.Module, names: Sequence[TowerName]):
        super().__init__()
        towers = [tower_of(model, name) for name in names]
        self.towers = nn.ModuleDict()
        self.multipliers = nn.ParameterDict()
        self.channels: dict[str, OpenChannels] = {}
        for tower in towers:
            self.towers[tower.name] = TowerGates(structure_of(tower))
            multipliers = torch.full((2,), FIRST_MULTIPLIER)
            self.multipliers[tower.name] = nn.Parameter(multipliers)
            self.channels[tower.name] = OpenChannels()
            _gate_norms(tower, self.channels[tower.name])

    def draw(self, seed: int) -> None:
        """Draw the gates of the next step from a seed."""
        generator = torch.Generator().manual_seed(seed)
        for tower in self.towers.values():
            tower.draw(generator)

    def clamp(self) -> None:
        """Bring the gates' parameters back into their bounds, after an optimizer step."""
        for tower in self.towers.values():
            tower.clamp()

    def masks(self) -> dict[str, Masks]:
        """Return the gates of each tower, by its name."""
        return {name: tower.masks() for name, tower in self.towers.items()}

    def run(self, model: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return ``function(*inputs)``, in which ``model`` computes through its gates."""
        weights: dict[str, Tensor] = {}
        for name, masks in self.masks().items():
            tower = tower_of(model, name)
            hidden = masks.hidden
            index = hidden.nonzero().flatten()
            self.channels[name].index = None if len(index) == len(hidden) else index
            head_width = self.towers[name].structure.head_width
            for weight_name, weight in tower.weights():
                place = place_of(weight_name)
                gated = gated_weight(weight, place, masks, head_width)
                if gated is not weight:
                    weights[f"model.{tower.prefix}{weight_name}"] = gated
        return functional_call(_Call(model, function), weights, inputs)


def _gate_norms(tower: Tower, channels: OpenChannels) -> None:
    """Replace the norms of a tower by gated ones."""
    for name, norm in list(tower.norms()):
        parent, _, attribute = name.rpartition(".")
        owner = tower.module.get_submodule(parent)
        setattr(owner, attribute, GatedNorm(norm, channels))
