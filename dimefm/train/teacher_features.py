"""The cached features of each teacher, for the rows of one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dimefm.cache import EncoderCard
from dimefm.losses import Features, TextTokenStates
from dimefm.train.inputs.batch import Batch


def teacher_features(
    batches: Sequence[Batch],
    places: Tensor,
    teachers: Sequence[EncoderCard],
    like: Tensor,
    logit_scale: float | None,
) -> list[Features]:
    """Return the features of each teacher at the ``places`` [B] of a step's micro-batches.

    The features have the device and type of ``like``. ``logit_scale`` None uses the scale of each
    teacher.
    """
    features = []
    for number, teacher in enumerate(teachers):
        images = _joined([batch.same_modality[number] for batch in batches], like)[places]
        texts = _texts(batches, number, places, images, like)
        extras = _extras(batches, number, places, like)
        scale = logit_scale or teacher.logit_scale
        features.append(Features.from_rows(images, texts, scale, **extras))
    return features


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the rows of all micro-batches as one tensor on the student's device."""
    return torch.cat(list(parts)).to(like, non_blocking=True)


def _texts(
    batches: Sequence[Batch], number: int, places: Tensor, images: Tensor, like: Tensor
) -> Tensor:
    """Return the rows of teacher ``number`` that the ``images`` are compared with.

    They are the rows of the pairs' captions, of texts drawn by themselves, or the images' own.
    """
    parts = [batch.other_modality[number] for batch in batches if batch.other_modality is not None]
    if not parts:
        return images[:, 0] if images.ndim == 3 else images
    texts = _joined(parts, like)
    if batches[0].paired:
        return texts[places]
    return texts


def _extras(batches: Sequence[Batch], number: int, places: Tensor, like: Tensor) -> dict:
    """Return the further fields of :class:`Features` that some losses need of a teacher."""
    extras: dict = {}
    for name in batches[0].teacher_extras:
        parts = [batch.teacher_extras[name][number] for batch in batches]
        extras[name] = torch.cat(parts).to(like)[places]
    if "neighbor_text" in extras:
        extras["neighbor_text"] = F.normalize(extras["neighbor_text"], dim=-1)
    if "words" in extras:
        states = extras["words"]
        samples, length = states.shape[:2]
        lengths = torch.full((samples,), length, device=states.device)
        extras["words"] = TextTokenStates(states, lengths)
    return extras
