"""The three primitives that every term is built from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def logits(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Tensor:
    """Return similarities [Q, K] of unit rows [Q, D] and [K, D]; the scale goes onto the queries, as DIME-FM does."""
    return (scale * queries) @ keys.T


def relation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return mean over rows of KL(softmax(teacher / t) || softmax(student / t)) for similarities [Q, K].

    No temperature² factor and no factor for directions: a term that has them says so in its own line.
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    found = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(found, target, reduction="batchmean", log_target=True)


def contrast(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Tensor:
    """Return InfoNCE of unit rows [B, D] against [B, D], row i the positive of row i, in one direction."""
    return F.cross_entropy(logits(queries, keys, scale), torch.arange(len(queries), device=queries.device))
