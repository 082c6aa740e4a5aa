"""TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight Inheritance (Wu et al., ICCV 2023).

The release's loss is ``alpha`` of the affinity loss and ``1 - alpha`` of the contrastive one, alpha
1 in all its scripts; here these are two terms with weights, ``tinyclip.affinity`` and
``clip.contrastive``. Source: Cream/TinyCLIP at 4a13c40, src/open_clip/clip_soft_loss.py and
src/training/train.py:161-205.
"""

from __future__ import annotations

from torch import Tensor

from dimefm.losses._features import Features
from dimefm.losses._needs import Need
from dimefm.losses._primitives import logits, soft_cross_entropy
from dimefm.losses._terms import needs

__all__ = ["affinity"]


@needs(Need.TEACHER, Need.SENTENCES)
def affinity(
    student: Features,
    teacher: Features,
    *,
    teacher_scale: float | None = None,
    student_scale: float | None = None,
) -> Tensor:
    """Affinity mimicking: image-sentence scores follow the teacher's, each at its own scale.

    Cross-entropy of softmaxed rows [B, N] and of rows [N, B] under the teacher's, averaged over the
    directions; the gradient is that of ``clip_kd.crd``. No pairs needed. ``teacher_scale`` stands
    in for the teacher's scale, ``student_scale`` for the student's, which then does not learn here
    (alone, it stays as it began); the released scripts set both to 50. Source: TinyCLIP, released
    src/open_clip/clip_soft_loss.py:54-88; src/training/train.py:408-409, 526-530.
    """
    s = logits(student.image, student.text, student_scale or student.logit_scale)
    t = logits(teacher.image, teacher.text, teacher_scale or teacher.logit_scale)
    return soft_cross_entropy(s, t, 1.0, both_ways=True) / 2
