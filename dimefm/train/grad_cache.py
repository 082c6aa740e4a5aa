"""The gradient of one optimizer step, exact for its whole batch, however many processes and
portions share it.

A similarity loss does not split: every image of a batch meets every other. So a step goes as
GradCache does (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup"): the towers encode their inputs, the rows of all portions and processes are put together,
the loss gives its gradient with respect to these rows, and each portion's rows carry theirs back
through the towers. One portion keeps its graph; of several, only one graph exists at a time and
everything is encoded twice. DistributedDataParallel averages what the processes found.

The modules of losses see the rows of all, in every process, so each has their whole gradient
at once; averaging it too keeps them alike to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from dimefm.train.distributed import DistributedContext, GlobalBatch
from dimefm.train.optim import LOSS_MODULES

Outputs = dict[str, Tensor]
Loss = Callable[[Outputs], dict[str, Tensor]]


@dataclass(frozen=True)
class MicroBatch:
    """What is encoded at a time: pixels [n, S, S, 3] or tokens [n, L] or both, with an axis of
    views or captions behind n where there are several, the tokens ``hidden`` from the sentences,
    and the seed of what is random in it.
    """

    pixels: Tensor | None
    tokens: Tensor | None
    seed: int
    hidden: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens if self.pixels is None else self.pixels)

    def inputs(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """Return what a student's ``forward`` takes on ``device``; a portion without rows gives two
        blank ones, for batch normalisation."""
        found = (
            value if value is None or len(value) else value.new_zeros(2, *value.shape[1:])
            for value in (self.pixels, self.tokens, self.hidden)
        )
        return tuple(
            None if value is None else value.to(device, non_blocking=True) for value in found
        )


class Gradients:
    """Fills the gradients of ``student``, whose ``forward`` gives rows [n, ...] and scalars by
    name.

    Its parameters under ``loss_modules`` are not the forward's but the loss's. ``dtype`` None
    encodes in the weights' own precision, another under autocast; rows are always handed on in
    full.
    """

    def __init__(
        self, student: nn.Module, world: DistributedContext, dtype: torch.dtype | None = None
    ):
        self.student, self.world, self.dtype = student, world, dtype
        self.loss_modules = {
            name: p for name, p in student.named_parameters() if name.startswith(LOSS_MODULES)
        }
        self.shared = student
        if world.size > 1:
            rings = [name for name, _ in student.named_buffers() if name.startswith(LOSS_MODULES)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                student, [*self.loss_modules, *rings]
            )
            with world.peer_errors():
                self.shared = DistributedDataParallel(student)

    def __call__(
        self, micro_batches: Sequence[MicroBatch], meeting: GlobalBatch, loss: Loss
    ) -> dict[str, Tensor]:
        """Add the gradient of ``loss(outputs)["total"]`` to the parameters; return what ``loss``
        gave.

        ``outputs`` are the student's, with the rows of all portions and processes in the order of
        ``meeting``.
        """
        if len(micro_batches) == 1:
            with self.world.peer_errors():
                encoded = [self._encode(self.shared, micro_batches[0])]
        else:
            with torch.no_grad(), statistics_kept(self.student):
                encoded = [self._encode(self.student, micro_batch) for micro_batch in micro_batches]
        met = {
            name: self._met([values[name] for values in encoded], meeting) for name in encoded[0]
        }
        with torch.enable_grad():
            values = loss(met)
        values["total"].backward()
        self.world.average([p.grad for p in self.loss_modules.values() if p.grad is not None])
        own = {
            name: self._own(value, meeting) for name, value in met.items() if value.requires_grad
        }
        with self.world.peer_errors():
            self._carry_back(micro_batches, encoded, own)
        return values

    def _encode(self, student: nn.Module, micro_batch: MicroBatch) -> Outputs:
        """Return the outputs for one portion: rows in float32 (or float64) and scalars. Blank rows
        leave no trace in running statistics."""
        torch.manual_seed(micro_batch.seed)
        inputs = micro_batch.inputs(self.world.device)
        blank = contextlib.nullcontext() if len(micro_batch) else statistics_kept(self.student)
        with (
            blank,
            torch.autocast(
                self.world.device.type, dtype=self.dtype, enabled=self.dtype is not None
            ),
        ):
            outputs = student(*inputs)
        half = (torch.float16, torch.bfloat16)
        full = {
            name: value.float() if value.dtype in half else value for name, value in outputs.items()
        }
        return {
            name: value[: len(micro_batch)] if value.ndim else value for name, value in full.items()
        }

    def _met(self, values: Sequence[Tensor], meeting: GlobalBatch) -> Tensor:
        """Return one output of all portions and processes, ready for its gradient; a scalar is the
        same in all of them.
        """
        met = (
            meeting.rows(torch.cat([value.detach() for value in values]))
            if values[0].ndim
            else values[-1].detach()
        )
        return met.requires_grad_(met.is_floating_point())

    def _own(self, met: Tensor, meeting: GlobalBatch) -> Tensor:
        """Return the gradient of this process's rows, times the processes over which the gradients
        are averaged later.
        """
        found = torch.zeros_like(met) if met.grad is None else met.grad
        return found[meeting.mine] * self.world.size if met.ndim else found

    def _carry_back(
        self, micro_batches: Sequence[MicroBatch], encoded: list[Outputs], gradients: Outputs
    ) -> None:
        """Send the gradients [n, ...] of all portions' rows back through the towers; processes meet
        in the last portion.
        """
        start = 0
        for number, micro_batch in enumerate(micro_batches):
            last, end = number + 1 == len(micro_batches), start + len(micro_batch)
            with (
                contextlib.nullcontext() if last or self.world.size == 1 else self.shared.no_sync()
            ):
                outputs = (
                    encoded[0]
                    if len(micro_batches) == 1
                    else self._encode(self.shared, micro_batch)
                )
                parts = {
                    name: g[start:end] if g.ndim else g * last for name, g in gradients.items()
                }
                kept = [
                    (outputs[name], part)
                    for name, part in parts.items()
                    if outputs[name].requires_grad
                ]
                torch.autograd.backward([output for output, _ in kept], [part for _, part in kept])
            start = end


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of normalisation layers as they are; they still normalise with
    those of the batch.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _NormBase) and layer.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
