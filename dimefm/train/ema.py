"""Averaged weights: an exponential moving average of a model's weights over the optimizer's
steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Ema(AveragedModel):
    """A copy of ``model`` whose weights follow the model's slowly; ``module`` is that copy, in
    evaluation mode.

    After update n (from 0) a weight is d * average + (1 - d) * weight with d = ``min(decay, (1 + n)
    / (10 + n))``, in the weight's own type (float32 in a run); the first update copies. Buffers
    (running statistics, rows seen lately) are the model's own tensors, not copies. The state dict
    holds the number of updates too, so a restored average goes on bit for bit.

    Source of the average: Polyak and Juditsky, 1992; of the growing decay: TensorFlow's
    ``tf.train.ExponentialMovingAverage`` with ``num_updates``. Raises ValueError unless 0 <= decay
    < 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected 0 <= decay < 1")
        super().__init__(model, multi_avg_fn=_towards(decay))
        for ours, theirs in zip(self.module.modules(), model.modules(), strict=True):
            for name, buffer in theirs.named_buffers(recurse=False):
                setattr(ours, name, buffer)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of ``model`` into the average, after an optimizer step."""
        self.update_parameters(model)


def decay_at(updates: int, decay: float) -> float:
    """Return the decay of an average that has taken in ``updates`` models before this one."""
    return min(decay, (1 + updates) / (10 + updates))


def _towards(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Return what moves averages [K tensors] towards the weights, as AveragedModel calls it."""

    def move(averages: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
        torch._foreach_lerp_(averages, weights, 1 - decay_at(int(updates), decay))

    return move
