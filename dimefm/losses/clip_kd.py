"""CLIP-KD: An Empirical Study of CLIP Model Distillation (Yang et al., CVPR 2024), without its live
teacher.

The paper's mix is ``clip.contrastive`` 1 + ``crd`` 1 + ``icl`` 1 + ``fd`` 2000. Where a student's
rows have another dimension than the teacher's, ``fd``, ``icl``, ``cross_kd``, ``gd`` and ``afd``
share two linear maps, one of images and one of sentences, from the student's rows as they come to
the teacher's dimension; below, S and W are the rows after that, of unit length, and I and T the
teacher's images and sentences. ``crd`` compares the student's rows as they are.

Where the student has one tower its other rows are the teacher's own: W is T. Then the text side of
``fd`` is 0, that of ``icl`` and ``cross_kd`` has no gradient but for the learned scale, and all
others still compare both sides.

Source of all: the release at f3ae18b, src/open_clip/loss.py; MFD is its ``fd`` with a masked
student, and was no such thing in the release (src/open_clip/model.py:192-195 throws the masked
features away).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.losses._features import Features
from dimefm.losses._modules import (
    Scale,
    fusion,
    project_to_teacher,
    projection,
    scale,
    uses_modules,
)
from dimefm.losses._needs import Need
from dimefm.losses._primitives import info_nce, logits, similarity_kl
from dimefm.losses._terms import needs

__all__ = ["afd", "crd", "cross_kd", "fd", "gd", "icl"]

Kind = Literal["raw", "exp"]


@needs(Need.TEACHER, Need.SENTENCES)
def crd(student: Features, teacher: Features) -> Tensor:
    """Contrastive relational distillation: image-sentence scores follow the teacher's, each at its
    own scale.

    KL of rows [B, N] and of rows [N, B], averaged over the two directions. No pairs needed.
    Source: CLIP-KD, released src/open_clip/loss.py:200-210, 259-260, 317-318.
    """
    s = logits(student.image, student.text, student.logit_scale)
    t = logits(teacher.image, teacher.text, teacher.logit_scale)
    return similarity_kl(s, t, 1.0, both_ways=True) / 2


@needs(Need.TEACHER)
@uses_modules(image_projection=projection, text_projection=projection)
def fd(
    student: Features, teacher: Features, *, image_projection: nn.Module, text_projection: nn.Module
) -> Tensor:
    """Feature distillation: squared distance of the student's images and sentences to the
    teacher's.

    Of S to I, the mean over [B, D], plus of W to T, the mean over [N, D]; so the paper's weight
    2000 means 3.9 |S - I|² at D = 512. No pairs needed. Source: CLIP-KD, released
    src/open_clip/loss.py:289-296.
    """
    image, text = project_to_teacher(student, image_projection, text_projection)
    return F.mse_loss(image, teacher.image) + F.mse_loss(text, teacher.text)


@needs(Need.TEACHER, Need.PAIRS)
@uses_modules(image_projection=projection, text_projection=projection, cross_scale=scale)
def icl(
    student: Features,
    teacher: Features,
    *,
    image_projection: nn.Module,
    text_projection: nn.Module,
    cross_scale: Scale,
    scale: Kind = "raw",
) -> Tensor:
    """Interactive contrastive learning: the student's images look for the teacher's sentences, and
    its sentences for images.

    InfoNCE of S against T and of W against I, rows [B, B], averaged. The learned factor c on
    cosines starts as the number 2.66, as released; ``scale = "exp"`` makes it e^c, at most 100, as
    the task's own scale is: the release forgot the exponential, and a softmax at 2.66 is almost
    flat over 1024 rows. Source: CLIP-KD, released src/open_clip/loss.py:244, 298-299, 312-315.
    """
    image, text = project_to_teacher(student, image_projection, text_projection)
    factor = cross_scale(scale)
    return (info_nce(image, teacher.text, factor) + info_nce(text, teacher.image, factor)) / 2


@needs(Need.TEACHER, Need.SENTENCES)
@uses_modules(image_projection=projection, text_projection=projection, cross_scale=scale)
def cross_kd(
    student: Features,
    teacher: Features,
    *,
    image_projection: nn.Module,
    text_projection: nn.Module,
    cross_scale: Scale,
    scale: Kind = "raw",
) -> Tensor:
    """Relations across models: scores of S against T, and of W against I, follow the teacher's own.

    KL of rows [B, N] and [N, B], averaged; the student's at the factor of ``icl``, see there for
    ``scale``. No pairs needed. Source: CLIP-KD, released src/open_clip/loss.py:320-321; neither the
    paper nor a released script uses it.
    """
    image, text = project_to_teacher(student, image_projection, text_projection)
    factor, t = cross_scale(scale), logits(teacher.image, teacher.text, teacher.logit_scale)
    forth = similarity_kl(logits(image, teacher.text, factor), t, 1.0)
    back = similarity_kl(logits(text, teacher.image, factor), t.T, 1.0)
    return (forth + back) / 2


@needs(Need.TEACHER, Need.PAIRS)
@uses_modules(image_projection=projection, text_projection=projection)
def gd(
    student: Features,
    teacher: Features,
    *,
    image_projection: nn.Module,
    text_projection: nn.Module,
    temperature: Literal["code", "paper"] = "code",
) -> Tensor:
    """Gradient distillation: the gradients of InfoNCE by its own rows follow those that the
    teacher's rows would have.

    Squared distances, means over B and D, of the gradients [B, D] by queries and by keys, in both
    directions, added; in closed form, with O(B² + B D) memory. As released the similarities are
    divided by the scale, where the gradient is that of similarities times the scale: ``temperature
    = "paper"`` mends that. The release's weight 1e8 belongs to "code". Source: CLIP-KD, released
    src/open_clip/loss.py:129-138, 326-337.
    """
    image, text = project_to_teacher(student, image_projection, text_projection)
    ours, theirs = student.logit_scale, teacher.logit_scale
    if temperature == "code":
        ours, theirs = 1 / ours, 1 / theirs
    found = (*_slopes(image, text, ours), *_slopes(text, image, ours))
    wanted = (
        *_slopes(teacher.image, teacher.text, theirs),
        *_slopes(teacher.text, teacher.image, theirs),
    )
    distances = [F.mse_loss(a, b) for a, b in zip(found, wanted, strict=True)]
    return distances[0] + distances[1] + distances[2] + distances[3]


@needs(Need.TEACHER, Need.PAIRS)
@uses_modules(
    image_projection=projection,
    text_projection=projection,
    image_fusion=fusion,
    text_fusion=fusion,
    fusion_scale=scale,
)
def afd(
    student: Features,
    teacher: Features,
    *,
    image_projection: nn.Module,
    text_projection: nn.Module,
    image_fusion: nn.Module,
    text_fusion: nn.Module,
    fusion_scale: Scale,
    scale: Kind = "raw",
) -> Tensor:
    """Augmented feature distillation: rows fused of the student's and the teacher's are told apart
    by contrast.

    S is fused with I and W with T, to unit rows [B, E], then InfoNCE, both directions averaged; E
    is the student's dimension. The fusing maps take two rows of the teacher's dimension; as
    released they take one of each dimension and fail where these differ, so that where the release
    runs both are one. The factor is another than that of ``icl``, see there for ``scale``. Source:
    CLIP-KD, released src/open_clip/loss.py:237-239, 245, 339-352.
    """
    image, text = project_to_teacher(student, image_projection, text_projection)
    image = F.normalize(image_fusion(torch.cat([image, teacher.image], dim=1)), dim=-1)
    text = F.normalize(text_fusion(torch.cat([text, teacher.text], dim=1)), dim=-1)
    return info_nce(image, text, fusion_scale(scale), both_ways=True) / 2


def _slopes(queries: Tensor, keys: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the gradients [B, D] of InfoNCE of unit rows [B, D], by queries and by keys."""
    count = len(queries)
    shares = (scale * queries @ keys.T).softmax(1)
    errors = shares - shares.new_ones(count).diag()
    return errors @ keys * (scale / count), errors.T @ queries * (scale / count)
