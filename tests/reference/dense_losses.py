"""The primitives of the losses on whole matrices [Q, K], differentiated by autograd: plain, and as
large as they look.
"""

import torch
from torch.nn import functional as F


def logits(queries, keys, scale):
    """Return similarities [Q, K]."""
    return scale * (queries @ keys.T)


def similarity_kl(student, teacher, temperature, both_ways=False):
    """Return mean over rows of KL(softmax(teacher / t) || softmax(student / t)); both ways adds
    that of the transposes.
    """
    target, found = ((x / temperature).log_softmax(dim=1) for x in (teacher.detach(), student))
    value = (target.exp() * (target - found)).sum(dim=1).mean()
    return value + similarity_kl(student.T, teacher.T, temperature) if both_ways else value


def soft_cross_entropy(student, teacher, temperature, both_ways=False):
    """Return mean over rows of -Σ softmax(teacher / t) log softmax(student / t); both ways adds
    that of the transposes.
    """
    target, found = (
        (teacher.detach() / temperature).softmax(dim=1),
        (student / temperature).log_softmax(dim=1),
    )
    value = -(target * found).sum(dim=1).mean()
    return value + soft_cross_entropy(student.T, teacher.T, temperature) if both_ways else value


def info_nce(queries, keys, scale, both_ways=False):
    """Return InfoNCE of rows [B, D] against [B, D]; both ways adds that of keys against queries."""
    value = F.cross_entropy(
        logits(queries, keys, scale), torch.arange(len(queries), device=queries.device)
    )
    return value + info_nce(keys, queries, scale) if both_ways else value
