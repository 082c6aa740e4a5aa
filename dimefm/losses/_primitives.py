"""The primitives that every term is built from. None of them holds more than a chunk of the
similarities [Q, K].
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from dimefm.losses._chunked import Fused, Similarity


def logits(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Similarity:
    """Return similarities [Q, K] of unit rows [Q, D] and [K, D]; what takes them computes them in
    chunks.
    """
    return Similarity(queries, keys, scale)


def similarity_kl(
    student: Similarity, teacher: Similarity, temperature: float, *, both_ways: bool = False
) -> Tensor:
    """Return mean over rows of KL(softmax(teacher / t) || softmax(student / t)) for similarities
    [Q, K].

    ``both_ways`` adds the same mean over columns, at less cost than a second call with both
    transposed. No temperature² factor and no factor for directions: a term that has them says so in
    its own line. The student's queries, keys and scale receive gradients, the teacher's never do.
    """
    return Fused(_kl, temperature, both_ways)(student, teacher)


def soft_cross_entropy(
    student: Similarity, teacher: Similarity, temperature: float, *, both_ways: bool = False
) -> Tensor:
    """Return mean over rows of the cross-entropy of softmax(student / t) under softmax(teacher / t)
    for [Q, K].

    It is :func:`similarity_kl` plus the teacher's entropy, so it has the same gradients.
    """
    return Fused(_cross_entropy, temperature, both_ways)(student, teacher)


def info_nce(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    *,
    both_ways: bool = False,
    duplicate_ids: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE of unit rows [B, D] against [B, D], row i the positive of row i, in one
    direction.

    ``both_ways`` adds the other direction. Rows j of the number ``duplicate_ids`` [B] that row i
    has are no negatives of it. Raises ValueError when there are not as many keys as queries.
    """
    if len(queries) != len(keys):
        raise ValueError(f"contrast of {len(queries)} queries and {len(keys)} keys; expected pairs")
    if duplicate_ids is None:
        return Fused(_positive, both_ways=both_ways)(logits(queries, keys, scale))
    one_way = Fused(functools.partial(_positive_but_twins, duplicate_ids), softmax=False)
    found = logits(queries, keys, scale)
    return one_way(found) + one_way(found.T) if both_ways else one_way(found)


def nt_xent(rows: Tensor, scale: Tensor | float) -> Tensor:
    """Return NT-Xent of unit rows [2 B, D]: each row finds row i + B (or i - B) among all others
    but itself; the mean.
    """
    return Fused(_other_view, softmax=False)(logits(rows, rows, scale))


def cross_entropy(queries: Tensor, keys: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of labels [M] under logits queries [M, D] @ keysᵀ [K, D] + bias
    [K].

    Queries, keys and bias receive gradients.
    """
    ones = queries.new_ones(len(queries), 1)
    found = logits(torch.cat([queries, ones], 1), torch.cat([keys, bias[:, None]], 1), 1.0)
    return Fused(functools.partial(_labelled, labels))(found)


def sigmoid_loss(
    queries: Tensor, keys: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Return the sigmoid loss of unit rows [B, D] against [B, D]: each similarity plus ``bias`` is
    a logit of "is a pair".

    It is the binary cross-entropy, summed over columns, averaged over rows; row i belongs to row i.
    Rows, scale and bias receive gradients. Raises ValueError when there are not as many keys as
    queries.
    """
    if len(queries) != len(keys):
        raise ValueError(
            f"sigmoid loss of {len(queries)} queries and {len(keys)} keys; expected pairs"
        )
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


def _positive_but_twins(duplicate_ids: Tensor, first: int, found: Tensor) -> tuple[Tensor, Tensor]:
    same = duplicate_ids[first : first + len(found), None] == duplicate_ids
    same.diagonal(first).fill_(False)
    return _positive(first, found.masked_fill_(same, -torch.inf).log_softmax(1))


def _other_view(first: int, found: Tensor) -> tuple[Tensor, Tensor]:
    found.diagonal(first).fill_(-torch.inf)
    count = found.shape[1]
    labels = torch.arange(count // 2, count + count // 2, device=found.device) % count
    return _labelled(labels, first, found.log_softmax(1))


def _labelled(labels: Tensor, first: int, found: Tensor) -> tuple[Tensor, Tensor]:
    own = labels[first : first + len(found), None]
    loss = -found.gather(1, own).sum()
    return loss, found.exp_().scatter_add_(1, own, found.new_full((), -1.0).expand(own.shape))


def _pair(first: int, found: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.softplus(found).sum() - found.diagonal(first).sum()
    slope = found.sigmoid_()
    slope.diagonal(first).sub_(1)
    return loss, slope
