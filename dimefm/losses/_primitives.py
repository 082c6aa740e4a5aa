"""The primitives that every term is built from. None of them holds more than a chunk of the similarities [Q, K]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dimefm.losses._fused import Fused, Similarity


def logits(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Similarity:
    """Return similarities [Q, K] of unit rows [Q, D] and [K, D]; what takes them computes them in chunks."""
    return Similarity(queries, keys, scale)


def relation_kl(student: Similarity, teacher: Similarity, temperature: float, *, both_ways: bool = False) -> Tensor:
    """Return mean over rows of KL(softmax(teacher / t) || softmax(student / t)) for similarities [Q, K].

    ``both_ways`` adds the same mean over columns, at less cost than a second call with both transposed. No temperature²
    factor and no factor for directions: a term that has them says so in its own line. The student's queries, keys and scale
    receive gradients, the teacher's never do.
    """
    return Fused(_kl, temperature, both_ways)(student, teacher)


def soft_cross_entropy(student: Similarity, teacher: Similarity, temperature: float, *, both_ways: bool = False) -> Tensor:
    """Return mean over rows of the cross-entropy of softmax(student / t) under softmax(teacher / t) for [Q, K].

    It is :func:`relation_kl` plus the teacher's entropy, so it has the same gradients.
    """
    return Fused(_cross_entropy, temperature, both_ways)(student, teacher)


def contrast(queries: Tensor, keys: Tensor, scale: Tensor | float, *, both_ways: bool = False) -> Tensor:
    """Return InfoNCE of unit rows [B, D] against [B, D], row i the positive of row i, in one direction.

    ``both_ways`` adds the other direction. Raises ValueError when there are not as many keys as queries.
    """
    if len(queries) != len(keys):
        raise ValueError(f"contrast of {len(queries)} queries and {len(keys)} keys; expected pairs")
    return Fused(_positive, both_ways=both_ways)(logits(queries, keys, scale))


def sigmoid_pairs(queries: Tensor, keys: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """Return the sigmoid loss of unit rows [B, D] against [B, D]: each similarity plus ``bias`` is a logit of "is a pair".

    It is the binary cross-entropy, summed over columns, averaged over rows; row i belongs to row i. Rows, scale and bias
    receive gradients. Raises ValueError when there are not as many keys as queries.
    """
    if len(queries) != len(keys):
        raise ValueError(f"sigmoid loss of {len(queries)} queries and {len(keys)} keys; expected pairs")
    ones = queries.new_ones(len(queries), 1)
    found = logits(torch.cat([queries * scale, ones * bias], 1), torch.cat([keys, ones], 1), 1.0)
    return Fused(_pair, softmax=False)(found)


def _kl(_: int, found: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    shares = target.exp()
    return target.sub_(found).mul_(shares).sum(), found.exp_().sub_(shares)


def _cross_entropy(_: int, found: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    shares = target.exp_()
    return -(shares * found).sum(), found.exp_().sub_(shares)


def _positive(first: int, found: Tensor) -> tuple[Tensor, Tensor]:
    loss = -found.diagonal(first).sum()
    slope = found.exp_()
    slope.diagonal(first).sub_(1)
    return loss, slope


def _pair(first: int, found: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.softplus(found).sum() - found.diagonal(first).sum()
    slope = found.sigmoid_()
    slope.diagonal(first).sub_(1)
    return loss, slope
