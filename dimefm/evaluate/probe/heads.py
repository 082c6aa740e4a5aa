"""Linear heads on fixed embeddings, all trained at once.

H heads differ in their learning rate and weight decay alone and see the same batches, so their
forward and backward passes are one matrix product each. The heads are independent: each ends where
a run of its own ends.

A head computes ``logits = Linear(BN(f))`` with ``BN = BatchNorm1d(affine=False)``. The loss is
cross-entropy or, for several labels per image, binary cross-entropy of the logits. SGD has momentum
without Nesterov's form, a constant learning rate, and weight decay on weights and biases. The
scale of the logits is ``exp(0)``, as in the toolkit's settings.

Source: Elevater_Toolkit_IC ``evaluation/full_model_finetune.py`` (Classifier, train_one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dimefm.errors import DataError
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe.data import Features

BATCH_SIZE = 64
MOMENTUM = 0.9
EPSILON = 1e-5
"""Added to variances by ``BatchNorm1d``."""

RUNNING = 0.1
"""Weight of a batch in the running means and variances of ``BatchNorm1d``."""

WEIGHTS_AT_ONCE = 2 << 20
"""Bytes of weights that are trained together on a CPU, so that they stay in its caches."""

BATCHES_AT_ONCE = 32
"""Batches that are prepared together."""

LOGITS_AT_ONCE = 1 << 24
"""Logits that are computed together when heads are scored."""

AfterEpoch = Callable[[int, "Heads"], None]
"""Called with the number of finished epochs, from 1, and the heads as they are then."""


@dataclass(frozen=True)
class Heads:
    """H linear heads for C classes of embeddings with D numbers.

    ``weights`` [H, C, D] and ``biases`` [H, C] apply to embeddings less ``mean`` [D], divided by
    the root of ``variance`` [D] + 1e-5. ``alive`` bool [H] tells which heads have finite weights.
    While heads train, these tensors change in place.
    """

    weights: Tensor
    biases: Tensor
    mean: Tensor
    variance: Tensor
    alive: np.ndarray

    def logits(self, embeddings: np.ndarray, head: int) -> np.ndarray:
        """Return the logits float32 [n, C] of one head for embeddings [n, D]."""
        return self._logits(self._normalized(embeddings), head).cpu().numpy()

    def logits_of_each(self, embeddings: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the logits float32 [n, C] of one head after the other for embeddings [n, D]."""
        normalized = self._normalized(embeddings)
        for head in range(len(self.weights)):
            yield self._logits(normalized, head).cpu().numpy()

    def probabilities(self, embeddings: np.ndarray, head: int) -> np.ndarray:
        """Return the softmax [n, C] of the logits of one head, also for several labels per image:
        that is what the toolkit scores.
        """
        logits = self._logits(self._normalized(embeddings), head)
        return torch.softmax(logits, dim=-1).cpu().numpy()

    def scores(self, features: Features, metric: str) -> np.ndarray:
        """Return the metric float64 [H] of the heads' softmax probabilities, 0 to 1.

        ``metric`` is a name in METRICS. A head without finite weights scores 0. Raises DataError
        when the labels do not fit the metric.
        """
        scores = np.zeros(len(self.weights))
        normalized = self._normalized(features.embeddings)
        for head in np.flatnonzero(self.alive):
            logits = self._logits(normalized, int(head))
            probabilities = torch.softmax(logits, dim=-1).cpu().numpy()
            if np.isfinite(probabilities).all():
                scores[head] = METRICS[metric](probabilities, features.labels)
        return scores

    @torch.inference_mode()
    def _normalized(self, embeddings: np.ndarray) -> Tensor:
        rows = _tensor(embeddings, self.weights.device)
        return (rows - self.mean) * torch.rsqrt(self.variance + EPSILON)

    @torch.inference_mode()
    def _logits(self, normalized: Tensor, head: int) -> Tensor:
        return torch.addmm(self.biases[head], normalized, self.weights[head].T)


def train(
    features: Features,
    start: np.ndarray | None,
    rates: Sequence[float] | np.ndarray,
    decays: Sequence[float] | np.ndarray,
    *,
    epochs: int,
    seed: int,
    n_classes: int | None = None,
    after_epoch: AfterEpoch | None = None,
    batch_size: int = BATCH_SIZE,
    momentum: float = MOMENTUM,
    device: str | torch.device = "cpu",
) -> Heads:
    """Return H heads that were trained on ``features`` for a number of epochs.

    ``rates`` and ``decays`` [H] are the learning rate and weight decay of each head. All heads
    begin with the class weights ``start`` [C, D] and biases of 0; without ``start`` with the same
    random weights, for which ``n_classes`` says how many classes there are. ``seed`` decides these
    weights and the order of the images. ``after_epoch`` may stop the training by StopIteration. A
    batch of a single image is left out, as BatchNorm has no variance of it.

    A head whose weights become infinite is trained no further; ``alive`` tells.

    Raises DataError when there are less than two images, the labels do not fit ``start``, or there
    is not a decay for each rate.
    """
    trainer = _Trainer(
        features, start, rates, decays, n_classes, seed, batch_size, momentum, device
    )
    for epoch in range(1, epochs + 1):
        trainer.train_epoch()
        if after_epoch is None:
            continue
        try:
            after_epoch(epoch, trainer.heads)
        except StopIteration:
            break
    return trainer.heads


class _Trainer:
    """The heads with what their training needs: velocities, targets and the order of images.

    The velocity of SGD is kept as the step that it makes, ``-rate`` times torch's buffer. So the
    weights change by a plain sum, whatever the rate of their head.
    """

    def __init__(
        self,
        features: Features,
        start: np.ndarray | None,
        rates: Sequence[float] | np.ndarray,
        decays: Sequence[float] | np.ndarray,
        n_classes: int | None,
        seed: int,
        batch_size: int,
        momentum: float,
        device: str | torch.device,
    ):
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.momentum = momentum
        self.embeddings = _tensor(features.embeddings, self.device)
        self.labels = torch.as_tensor(features.labels).to(self.device)
        self.several_labels = self.labels.ndim == 2
        self.generator = torch.Generator().manual_seed(seed)
        first = self._first_weights(start, n_classes)
        self.n_classes, self.dim = first.shape
        _check(features, self.n_classes, self.dim, rates, decays)
        self.rates = torch.as_tensor(np.asarray(rates, dtype=np.float32)).to(self.device)
        decay_array = np.asarray(rates, dtype=np.float64) * np.asarray(decays, dtype=np.float64)
        self.shrinkage = torch.as_tensor(decay_array.astype(np.float32)).to(self.device)
        n_heads = len(self.rates)
        self.heads = Heads(
            weights=first.repeat(n_heads, 1, 1),
            biases=torch.zeros(n_heads, self.n_classes, device=self.device),
            mean=torch.zeros(self.dim, device=self.device),
            variance=torch.ones(self.dim, device=self.device),
            alive=np.ones(n_heads, dtype=bool),
        )
        self.weight_steps = torch.zeros_like(self.heads.weights)
        self.bias_steps = torch.zeros_like(self.heads.biases)

    def _first_weights(self, start: np.ndarray | None, n_classes: int | None) -> Tensor:
        """Return the weights [C, D] with which every head begins."""
        dim = self.embeddings.shape[1]
        if start is not None:
            return _tensor(start, self.device).clone()
        if n_classes is None:
            n_classes = self.labels.shape[1] if self.several_labels else int(self.labels.max()) + 1
        bound = 1 / math.sqrt(dim)  # as nn.Linear
        uniform = torch.rand(n_classes, dim, generator=self.generator)
        return ((2 * uniform - 1) * bound).to(self.device)

    @torch.inference_mode()
    def train_epoch(self) -> None:
        """Show all images once, in an order of their own, to all heads that are alive."""
        alive = torch.as_tensor(np.flatnonzero(self.heads.alive), device=self.device)
        order = torch.randperm(len(self.labels), generator=self.generator).to(self.device)
        everyone = len(alive) == len(self.rates)
        group = _Group.of(self) if everyone else _Group.of(self, alive)
        for batches in self._blocks(order):
            for part in group.parts(self._heads_at_once()):
                for inputs, targets in batches:
                    part.step(inputs, targets, self.momentum, self.several_labels)
        if not everyone:
            self.heads.weights[alive] = group.weights
            self.heads.biases[alive] = group.biases
            self.weight_steps[alive] = group.weight_steps
            self.bias_steps[alive] = group.bias_steps
        finite = torch.isfinite(self.heads.weights).all(dim=2).all(dim=1)
        finite &= torch.isfinite(self.heads.biases).all(dim=1)
        self.heads.alive[:] = finite.cpu().numpy()

    def _heads_at_once(self) -> int:
        if self.device.type != "cpu":
            return len(self.rates)
        bytes_of_head = 4 * self.n_classes * self.dim
        return max(1, WEIGHTS_AT_ONCE // bytes_of_head)

    def _blocks(self, order: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield lists of batches: inputs [B, D] and targets [B, 1, C] of 0 and 1."""
        block: list[tuple[Tensor, Tensor]] = []
        for places in order.split(self.batch_size):
            if len(places) == 1:
                continue
            inputs = self._normalized(self.embeddings[places])
            block.append((inputs, self._targets(self.labels[places])))
            if len(block) == BATCHES_AT_ONCE:
                yield block
                block = []
        if block:
            yield block

    def _normalized(self, rows: Tensor) -> Tensor:
        """Return rows [B, D] normalized by their own statistics, which join the running ones."""
        n_rows = len(rows)
        mean = rows.mean(dim=0)
        centered = rows - mean
        variance = centered.square().mean(dim=0)
        self.heads.mean.lerp_(mean, RUNNING)
        self.heads.variance.lerp_(variance * (n_rows / (n_rows - 1)), RUNNING)
        return centered.mul_(torch.rsqrt(variance + EPSILON))

    def _targets(self, labels: Tensor) -> Tensor:
        if self.several_labels:
            return labels.float()[:, None]
        targets = torch.zeros(len(labels), 1, self.n_classes, device=self.device)
        return targets.scatter_(2, labels[:, None, None], 1.0)


@dataclass
class _Group:
    """Some heads: h of them, with their weights [h, C, D], biases [h, C] and last steps."""

    weights: Tensor
    biases: Tensor
    weight_steps: Tensor
    bias_steps: Tensor
    rates: Tensor
    shrinkage: Tensor

    @classmethod
    def of(cls, trainer: _Trainer, numbers: Tensor | None = None) -> _Group:
        """Return all heads of a trainer, or copies of those with the given numbers."""
        tensors = (
            trainer.heads.weights,
            trainer.heads.biases,
            trainer.weight_steps,
            trainer.bias_steps,
            trainer.rates,
            trainer.shrinkage,
        )
        if numbers is None:
            return cls(*tensors)
        return cls(*(tensor[numbers] for tensor in tensors))

    def parts(self, heads_at_once: int) -> Iterator[_Group]:
        """Yield the heads, some at a time; their tensors are views."""
        for first in range(0, len(self.weights), heads_at_once):
            heads = slice(first, first + heads_at_once)
            yield _Group(
                self.weights[heads],
                self.biases[heads],
                self.weight_steps[heads],
                self.bias_steps[heads],
                self.rates[heads],
                self.shrinkage[heads],
            )

    def step(self, inputs: Tensor, targets: Tensor, momentum: float, several_labels: bool) -> None:
        """Make one step of SGD with inputs [B, D] and targets [B, 1, C]."""
        n_heads, n_classes, dim = self.weights.shape
        flat_weights = self.weights.view(n_heads * n_classes, dim)
        flat_steps = self.weight_steps.view(n_heads * n_classes, dim)
        logits = torch.addmm(self.biases.view(-1), inputs, flat_weights.T)
        logits = logits.view(len(inputs), n_heads, n_classes)
        if several_labels:
            errors = torch.sigmoid(logits)
            n_terms = len(inputs) * n_classes
        else:
            errors = torch.softmax(logits, dim=-1)
            n_terms = len(inputs)
        errors.sub_(targets).mul_((-self.rates / n_terms)[:, None])
        flat_errors = errors.view(len(inputs), -1)
        flat_steps.addmm_(flat_errors.T, inputs, beta=momentum)
        self.weight_steps.addcmul_(self.weights, -self.shrinkage[:, None, None])
        self.bias_steps.mul_(momentum).add_(errors.sum(dim=0))
        self.bias_steps.addcmul_(self.biases, -self.shrinkage[:, None])
        self.weights.add_(self.weight_steps)
        self.biases.add_(self.bias_steps)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not values.flags.writeable:
        values = values.copy()  # torch warns of memory that it may not write
    return torch.from_numpy(values).to(device)


def _check(
    features: Features,
    n_classes: int,
    dim: int,
    rates: Sequence[float] | np.ndarray,
    decays: Sequence[float] | np.ndarray,
) -> None:
    """Raise DataError when heads cannot be trained on the features."""
    labels = features.labels
    if len(features) < 2:
        raise DataError(
            f"probe: expected 2 or more training images, found {len(features)}. Fix: add images"
        )
    if features.embeddings.shape[1] != dim:
        raise DataError(
            f"probe: embeddings have {features.embeddings.shape[1]} numbers, class weights have"
            f" {dim}. Fix: encode both with one model"
        )
    highest = labels.shape[1] - 1 if labels.ndim == 2 else int(labels.max())
    fits = highest == n_classes - 1 if labels.ndim == 2 else highest < n_classes
    if not fits or labels.min() < 0:
        raise DataError(
            f"probe: labels run from {labels.min()} to {highest}, expected 0 to {n_classes - 1}."
            " Fix: correct the labels"
        )
    if len(rates) != len(decays) or not len(rates):
        raise DataError(
            f"probe: {len(rates)} learning rates and {len(decays)} decays, expected one of each for"
            " every head. Fix: pass two lists of one length"
        )
