"""Averaged weights: an exponential moving average of a model's weights over training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Ema(AveragedModel):
    """A copy of a model whose weights follow the model's slowly.

    ``module`` is the copy, in evaluation mode. After update n (from 0) a weight is d * average +
    (1 - d) * weight with d = ``min(decay, (1 + n) / (10 + n))``, in the weight's own type (float32
    in a run); the first update copies. Buffers (running statistics, queues of recent embeddings)
    are the model's own tensors, not copies. The state dict also has the number of updates, so a
    restored average continues bit for bit.

    Source of the average: Polyak and Juditsky, 1992; of the growing decay: TensorFlow's
    ``tf.train.ExponentialMovingAverage`` with ``num_updates``. Raises ValueError unless 0 <= decay
    < 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected 0 <= decay < 1")
        super().__init__(model, multi_avg_fn=_move_towards(decay))
        self._share_buffers(model)
        self.requires_grad_(False)
        self.eval()

    def _share_buffers(self, model: nn.Module) -> None:
        """Use the model's buffers in place of the copy's."""
        modules = zip(self.module.modules(), model.modules(), strict=True)
        for averaged, original in modules:
            for name, buffer in original.named_buffers(recurse=False):
                setattr(averaged, name, buffer)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of ``model``, after an optimizer step."""
        self.update_parameters(model)


def decay_at(updates: int, decay: float) -> float:
    """Return the decay of an update that ``updates`` others precede."""
    growing = (1 + updates) / (10 + updates)
    return min(decay, growing)


def _move_towards(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Return the function that moves averages towards weights, as AveragedModel calls it."""

    def move(averages: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
        share = 1 - decay_at(int(updates), decay)
        torch._foreach_lerp_(averages, weights, share)

    return move
