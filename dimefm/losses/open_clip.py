"""open_clip's own distillation (``--distill-model``), without its live teacher.

Its DistillClipLoss is ``clip.contrastive`` 1 + ``open_clip.distill`` 1. A teacher with a logit bias
(SigLIP), with which it fails, is one like any other: a softmax does not see what is added to all
scores.
"""

from __future__ import annotations

from torch import Tensor

from dimefm.losses._features import Features
from dimefm.losses._needs import Need
from dimefm.losses._primitives import logits, soft_cross_entropy
from dimefm.losses._terms import needs

__all__ = ["distill"]


@needs(Need.TEACHER, Need.SENTENCES)
def distill(student: Features, teacher: Features, *, temperature: float = 1.0) -> Tensor:
    """Distillation of scores: softmaxed rows follow the teacher's, each at its own scale.

    Cross-entropy of rows [B, N] and of rows [N, B] under the teacher's, averaged over the
    directions. ``temperature`` divides both sides' scores; the original has none, and there is no
    factor temperature². No pairs needed. Source: open_clip 3.3.0, src/open_clip/loss.py:203-239.
    """
    s = logits(student.image, student.text, student.logit_scale)
    t = logits(teacher.image, teacher.text, teacher.logit_scale)
    return soft_cross_entropy(s, t, temperature, both_ways=True) / 2
