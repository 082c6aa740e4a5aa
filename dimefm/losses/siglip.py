"""SigLIP: Sigmoid Loss for Language Image Pre-Training (Zhai et al., ICCV 2023), on pairs, without
any teacher.
"""

from __future__ import annotations

from torch import Tensor

from dimefm.losses._features import Features
from dimefm.losses._needs import Need
from dimefm.losses._primitives import sigmoid_loss
from dimefm.losses._terms import needs

__all__ = ["sigmoid"]


@needs(Need.PAIRS, Need.BIAS)
def sigmoid(student: Features, teacher: Features | None = None) -> Tensor:
    """Each of B x B images and sentences is told apart by itself: do they belong together?

    Binary cross-entropy of scores [B, B] at the student's scale plus its bias, summed over
    sentences, averaged over images. Source: SigLIP, section 3.2 and algorithm 1; open_clip's
    SigLipLoss gives the same value on one process.
    """
    return sigmoid_loss(student.image, student.text, student.logit_scale, student.logit_bias)
