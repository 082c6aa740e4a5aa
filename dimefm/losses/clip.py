"""CLIP (Radford et al., 2021): the contrastive loss on pairs, without any teacher. For teachers and
baselines.
"""

from __future__ import annotations

from torch import Tensor

from dimefm.losses._features import Features
from dimefm.losses._needs import Need
from dimefm.losses._primitives import info_nce
from dimefm.losses._terms import needs

__all__ = ["contrastive"]


@needs(Need.PAIRS)
def contrastive(student: Features, teacher: Features | None = None) -> Tensor:
    """Symmetric InfoNCE over B pairs: mean of image → text and text → image, rows [B, B] at the
    student's scale.

    Source: CLIP, section 2.3 and figure 3; open_clip's ClipLoss gives the same value on one
    process.
    """
    return info_nce(student.image, student.text, student.logit_scale, both_ways=True) / 2
