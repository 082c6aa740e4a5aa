"""The exact gradient of one optimizer step, for any number of processes and micro-batches.

A similarity loss does not split: it compares every image of a batch with every text. So a step
follows GradCache (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup"):

1. First pass: the towers encode each micro-batch.
2. The embeddings of all micro-batches and processes are gathered, and the loss gives its gradient
   with respect to them.
3. Second pass: the gradient of each micro-batch's embeddings flows back through the towers.

A single micro-batch keeps its graph between the passes. Of several, each is encoded again in the
second pass, so only one graph exists at a time. DistributedDataParallel averages the gradients of
the processes.

The trainable modules of losses see the embeddings of all processes, so every process computes their
whole gradient. It is averaged too, which keeps the modules equal to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from dimefm.train.distributed import DistributedContext, GlobalBatch
from dimefm.train.optim import LOSS_MODULES, MULTIPLIERS

Outputs = dict[str, Tensor]
Loss = Callable[[Outputs], dict[str, Tensor]]

HALF_PRECISION = (torch.float16, torch.bfloat16)
BLANK_SAMPLES = 2  # batch normalization needs more than one


@dataclass(frozen=True)
class MicroBatch:
    """The n samples that are encoded at a time, and the seed of their random numbers.

    ``pixels`` are [n, S, S, 3], ``tokens`` [n, L]; pairs have both. Several views or captions have
    an axis after n. ``hidden`` [n, L] are the tokens that were hidden from the captions.
    """

    pixels: Tensor | None
    tokens: Tensor | None
    seed: int
    hidden: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens if self.pixels is None else self.pixels)

    def inputs(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """Return the arguments of a student's ``forward``, on ``device``.

        A micro-batch without samples gives two blank ones, for batch normalization.
        """
        inputs = []
        for value in (self.pixels, self.tokens, self.hidden):
            if value is not None and len(value) == 0:
                value = value.new_zeros(BLANK_SAMPLES, *value.shape[1:])
            if value is not None:
                value = value.to(device, non_blocking=True)
            inputs.append(value)
        return tuple(inputs)


class Gradients:
    """Computes the gradients of a student in two passes.

    The student's ``forward`` returns embeddings [n, ...] and scalars by name. Parameters whose
    names begin with ``loss_modules.`` belong to the loss, not to ``forward``; so do the multipliers
    of gates. ``dtype`` None
    encodes in the precision of the weights, another type under autocast; embeddings are always
    passed on in float32 or float64.
    """

    def __init__(
        self, student: nn.Module, context: DistributedContext, dtype: torch.dtype | None = None
    ):
        self.student = student
        self.context = context
        self.dtype = dtype
        self.loss_modules = {}
        for name, parameter in student.named_parameters():
            if name.startswith((LOSS_MODULES, MULTIPLIERS)):
                self.loss_modules[name] = parameter
        self.synchronized = student
        if context.size > 1:
            self.synchronized = self._synchronized_student()

    def _synchronized_student(self) -> DistributedDataParallel:
        """Return the student whose gradients are averaged over the processes."""
        ignored = list(self.loss_modules)
        for name, _ in self.student.named_buffers():
            if name.startswith(LOSS_MODULES):
                ignored.append(name)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.student, ignored)
        with self.context.peer_errors():
            return DistributedDataParallel(self.student)

    def __call__(
        self, micro_batches: Sequence[MicroBatch], global_batch: GlobalBatch, loss: Loss
    ) -> dict[str, Tensor]:
        """Add the gradient of ``loss(outputs)["total"]`` to the parameters; return the loss terms.

        ``outputs`` are those of the student for the samples of all micro-batches and processes, in
        the order of ``global_batch``.
        """
        encoded = self._first_pass(micro_batches)
        gathered = {}
        for name in encoded[0]:
            gathered[name] = _gather([outputs[name] for outputs in encoded], global_batch)
        with torch.enable_grad():
            terms = loss(gathered)
        terms["total"].backward()
        self._average_loss_modules()
        gradients = {}
        for name, value in gathered.items():
            if value.requires_grad:
                gradients[name] = self._local_gradient(value, global_batch)
        with self.context.peer_errors():
            self._second_pass(micro_batches, encoded, gradients)
        return terms

    def _first_pass(self, micro_batches: Sequence[MicroBatch]) -> list[Outputs]:
        """Encode all micro-batches; a single one keeps its graph for the second pass."""
        if len(micro_batches) == 1:
            with self.context.peer_errors():
                return [self._encode(self.synchronized, micro_batches[0])]
        with torch.no_grad(), statistics_kept(self.student):
            return [self._encode(self.student, micro_batch) for micro_batch in micro_batches]

    def _second_pass(
        self, micro_batches: Sequence[MicroBatch], encoded: list[Outputs], gradients: Outputs
    ) -> None:
        """Pass the ``gradients`` [n, ...] of all micro-batches back through the towers.

        The processes average the gradients of the parameters in the last micro-batch.
        """
        if len(micro_batches) == 1:
            _backward(encoded[0], gradients)
            return
        start = 0
        last = len(micro_batches) - 1
        for number, micro_batch in enumerate(micro_batches):
            end = start + len(micro_batch)
            with self._synchronizing(number == last):
                outputs = self._encode(self.synchronized, micro_batch)
                _backward(outputs, _part(gradients, start, end, number == last))
            start = end

    def _synchronizing(self, is_last: bool) -> AbstractContextManager:
        """Return a context in which the processes average gradients only when ``is_last``."""
        if is_last or self.context.size == 1:
            return contextlib.nullcontext()
        return self.synchronized.no_sync()

    def _encode(self, student: nn.Module, micro_batch: MicroBatch) -> Outputs:
        """Return the outputs for one micro-batch: embeddings and scalars in full precision.

        Blank samples do not change running statistics and have no embeddings.
        """
        torch.manual_seed(micro_batch.seed)
        samples = len(micro_batch)
        inputs = micro_batch.inputs(self.context.device)
        autocast = torch.autocast(
            self.context.device.type, dtype=self.dtype, enabled=self.dtype is not None
        )
        statistics = contextlib.nullcontext() if samples else statistics_kept(self.student)
        with statistics, autocast:
            outputs = student(*inputs)
        encoded = {}
        for name, value in outputs.items():
            if value.dtype in HALF_PRECISION:
                value = value.float()
            encoded[name] = value[:samples] if value.ndim else value
        return encoded

    def _average_loss_modules(self) -> None:
        """Average the gradients of the losses' modules over the processes."""
        gradients = []
        for parameter in self.loss_modules.values():
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        self.context.average(gradients)

    def _local_gradient(self, gathered: Tensor, global_batch: GlobalBatch) -> Tensor:
        """Return the gradient of this process's embeddings, or of a scalar.

        That of embeddings is multiplied by the number of processes, over which the gradients of the
        parameters are averaged later.
        """
        gradient = torch.zeros_like(gathered) if gathered.grad is None else gathered.grad
        if not gathered.ndim:
            return gradient
        return gradient[global_batch.mine] * self.context.size


def _gather(values: Sequence[Tensor], global_batch: GlobalBatch) -> Tensor:
    """Return one output of all micro-batches and processes as a leaf that takes a gradient.

    A scalar is the same in all of them.
    """
    if values[0].ndim:
        embeddings = torch.cat([value.detach() for value in values])
        gathered = global_batch.rows(embeddings)
    else:
        gathered = values[-1].detach()
    return gathered.requires_grad_(gathered.is_floating_point())


def _part(gradients: Outputs, start: int, end: int, is_last: bool) -> Outputs:
    """Return the gradients of one micro-batch; the gradient of a scalar is that of the last one."""
    part = {}
    for name, gradient in gradients.items():
        part[name] = gradient[start:end] if gradient.ndim else gradient * is_last
    return part


def _backward(outputs: Outputs, gradients: Outputs) -> None:
    """Pass gradients back from the outputs that have a graph."""
    tensors = []
    tensor_gradients = []
    for name, gradient in gradients.items():
        if outputs[name].requires_grad:
            tensors.append(outputs[name])
            tensor_gradients.append(gradient)
    torch.autograd.backward(tensors, tensor_gradients)


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of normalization layers as they are.

    The layers still normalize with the statistics of the batch.
    """
    layers = []
    for layer in model.modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            layers.append(layer)
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
