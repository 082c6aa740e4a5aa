"""DIME-FM: Distilling Multimodal and Efficient Foundation Models (Sun et al., ICCV 2023).

All three terms compare softmaxed similarities at the teacher's fixed scale (100 in the release).
The student has no text tower: sentences are the teacher's. Source: released
Training/utils/utils.py:53-101 and utils/split_network.py:82-94. Diagonals are not masked,
directions are summed, and there is no temperature² factor, as released.
"""

from __future__ import annotations

from torch import Tensor

from dimefm.losses._features import Features
from dimefm.losses._needs import Need
from dimefm.losses._primitives import logits, similarity_kl
from dimefm.losses._terms import needs

__all__ = ["vl", "pvl", "udist"]


@needs(Need.TEACHER, Need.SENTENCES, Need.WIDTH)
def vl(student: Features, teacher: Features, *, temperature: float = 1.0) -> Tensor:
    """Vision-language score distillation: student images against teacher sentences, both
    directions.

    KL of rows [B, N], averaged over B images, plus KL of rows [N, B], averaged over N sentences.
    Only student images and teacher sentences carry the scores. Source: DIME-FM, released
    Training/utils/utils.py:75-81.
    """
    s = logits(student.image, teacher.text, teacher.logit_scale)
    t = logits(teacher.image, teacher.text, teacher.logit_scale)
    return similarity_kl(s, t, temperature, both_ways=True)


@needs(Need.TEACHER, Need.WIDTH)
def pvl(student: Features, teacher: Features, *, temperature: float = 3.0) -> Tensor:
    """Pseudo vision-language distillation: teacher images stand in for sentences.

    KL of rows [B, B], student image → teacher images against teacher → teacher, times 2 for the two
    directions. Source: DIME-FM, released Training/utils/utils.py:86-89.
    """
    s = logits(student.image, teacher.image, teacher.logit_scale)
    t = logits(teacher.image, teacher.image, teacher.logit_scale)
    return 2 * similarity_kl(s, t, temperature)


@needs(Need.TEACHER, Need.WIDTH)
def udist(student: Features, teacher: Features, *, temperature: float = 7.0) -> Tensor:
    """Uni-modal distance preservation: similarities among student images follow those among teacher
    images.

    KL of rows [B, B], times 2; the gradient flows through both arguments of the student's
    similarities. Source: DIME-FM, released Training/utils/utils.py:94-98. The release gives it
    weight 0 by default.
    """
    s = logits(student.image, student.image, teacher.logit_scale)
    t = logits(teacher.image, teacher.image, teacher.logit_scale)
    return 2 * similarity_kl(s, t, temperature)
