"""The primitives that every term is built from.

None of them holds more than a chunk of the similarities [Q, K].
"""

from __future__ import annotations

import torch
from torch import Tensor

from dimefm.losses import _row_losses
from dimefm.losses._chunked import ChunkedLoss, Similarity


def logits(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Similarity:
    """Return similarities [Q, K] of unit rows [Q, D] and [K, D]; losses compute them in chunks."""
    return Similarity(queries, keys, scale)


def similarity_kl(
    student: Similarity, teacher: Similarity, temperature: float, *, both_ways: bool = False
) -> Tensor:
    """Return the mean over rows of KL(softmax(teacher / t) || softmax(student / t)) for [Q, K].

    ``both_ways`` adds the same mean over columns, at less cost than a second call with both
    transposed. There is no temperature² factor and no factor for directions: a term that has them
    states them itself. The student's queries, keys and scale receive gradients, the teacher's never
    do.
    """
    loss = ChunkedLoss(_row_losses.kl, temperature, both_ways)
    return loss(student, teacher)


def soft_cross_entropy(
    student: Similarity, teacher: Similarity, temperature: float, *, both_ways: bool = False
) -> Tensor:
    """Return the mean over rows of the cross-entropy of softmax(student / t) under the teacher's.

    It is :func:`similarity_kl` plus the teacher's entropy, so it has the same gradients.
    """
    loss = ChunkedLoss(_row_losses.soft_cross_entropy, temperature, both_ways)
    return loss(student, teacher)


def info_nce(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    *,
    both_ways: bool = False,
    duplicate_ids: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE of unit rows [B, D] against [B, D]: row i is the positive of row i.

    ``both_ways`` adds the other direction. Rows with an equal number in ``duplicate_ids`` [B] are
    not negatives of each other. Raises ValueError when there are not as many keys as queries.
    """
    if len(queries) != len(keys):
        raise ValueError(f"InfoNCE of {len(queries)} queries and {len(keys)} keys; expected pairs")
    similarities = logits(queries, keys, scale)
    if duplicate_ids is None:
        loss = ChunkedLoss(_row_losses.positive, both_ways=both_ways)
        return loss(similarities)
    one_way = ChunkedLoss(_row_losses.PositiveWithDuplicates(duplicate_ids), softmax=False)
    if both_ways:
        return one_way(similarities) + one_way(similarities.T)
    return one_way(similarities)


def nt_xent(rows: Tensor, scale: Tensor | float) -> Tensor:
    """Return NT-Xent of unit rows [2 B, D]: each finds row i + B (or i - B) among all others."""
    loss = ChunkedLoss(_row_losses.other_view, softmax=False)
    return loss(logits(rows, rows, scale))


def cross_entropy(queries: Tensor, keys: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of labels [M] under queries [M, D] @ keysᵀ [K, D] + bias [K].

    Queries, keys and bias receive gradients.
    """
    ones = queries.new_ones(len(queries), 1)
    queries_and_ones = torch.cat([queries, ones], 1)
    keys_and_bias = torch.cat([keys, bias[:, None]], 1)
    loss = ChunkedLoss(_row_losses.Labelled(labels))
    return loss(logits(queries_and_ones, keys_and_bias, 1.0))


def sigmoid_loss(
    queries: Tensor, keys: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Return the sigmoid loss of unit rows [B, D] against [B, D]: row i is the pair of row i.

    Each similarity plus ``bias`` is a logit of "is a pair"; the binary cross-entropy is summed over
    columns and averaged over rows. Rows, scale and bias receive gradients. Raises ValueError when
    there are not as many keys as queries.
    """
    if len(queries) != len(keys):
        raise ValueError(
            f"sigmoid loss of {len(queries)} queries and {len(keys)} keys; expected pairs"
        )
    ones = queries.new_ones(len(queries), 1)
    queries_and_bias = torch.cat([queries * scale, ones * bias], 1)
    keys_and_ones = torch.cat([keys, ones], 1)
    loss = ChunkedLoss(_row_losses.sigmoid, softmax=False)
    return loss(logits(queries_and_bias, keys_and_ones, 1.0))
