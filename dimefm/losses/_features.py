"""What every loss term receives: the features of the student or of a teacher, for one batch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TextTokenStates:
    """The token states of a text tower, for the first caption of each pair.

    ``states`` [B, L, W] are those of its last layer. ``lengths`` int64 [B] says how many of the L
    places are the caption's, its begin and end included. ``labels`` int64 [B, L] are the tokens
    that were hidden from the tower, -100 at all other places.
    """

    states: Tensor
    lengths: Tensor
    labels: Tensor | None = None

    def __getitem__(self, order: Tensor) -> TextTokenStates:
        """Return the same captions in another order [B]."""
        labels = None
        if self.labels is not None:
            labels = self.labels[order]
        return TextTokenStates(self.states[order], self.lengths[order], labels)


@dataclass(frozen=True)
class Features:
    """One side of one batch: the student, or a teacher.

    ``image`` [B, D] and ``text`` [N, D] are embeddings of unit length in float32 or float64.
    ``logit_scale`` is the factor on cosines, a float or a scalar tensor; ``logit_bias`` (SigLIP) is
    added after it. Rows i of image and text belong together only where the data are pairs (then B
    == N). ``raw`` are image and text before normalization. Student and teacher may have different D
    only where the student has both towers.

    Where a text tower trains alone the two sides change places: its captions and the teacher's
    embeddings of them are ``image``, the teacher's embeddings of images are ``text``. Every term
    then does with captions what its docstring says of images.

    A step may show V views and C captions of each pair. Then ``image`` and ``text`` are the first
    view and the first caption, and all of them, before normalization, are ``views`` [B, V, D] and
    ``captions`` [B, C, D].

    The other fields exist only where terms need them. Of a student: ``hidden`` [B, V, W], the views
    before the last projection; ``patches`` [B, P, W] of the first view; ``words`` of the first
    caption. Of a teacher: ``neighbor_text`` [B, D], a neighbor's embedding for each caption, of
    unit length; cached tokens, of a dimension of their own, in ``patches`` and ``words``.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float
    logit_bias: Tensor | float = 0.0
    raw: tuple[Tensor, Tensor] | None = None
    views: Tensor | None = None
    captions: Tensor | None = None
    hidden: Tensor | None = None
    patches: Tensor | None = None
    words: TextTokenStates | None = None
    neighbor_text: Tensor | None = None

    @staticmethod
    def from_rows(
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float = 0.0,
        **more: Any,
    ) -> Features:
        """Return features from embeddings of any length and dtype.

        Half precisions become float32, and embeddings are normalized. ``image`` is [B, D] or, for
        several views, [B, V, D]; ``text`` likewise. ``more`` are further fields, taken as they are.
        """
        image = to_full_precision(image)
        text = to_full_precision(text)
        views = None
        captions = None
        if image.ndim == 3:
            views = image
            image = views[:, 0]
        if text.ndim == 3:
            captions = text
            text = captions[:, 0]
        return Features(
            F.normalize(image, dim=-1),
            F.normalize(text, dim=-1),
            logit_scale,
            logit_bias,
            raw=(image, text),
            views=views,
            captions=captions,
            **more,
        )

    def with_image(self, image: Tensor, **more: Any) -> Features:
        """Return these features with another ``image`` [B, D] or [B, V, D] of any length and dtype.

        ``text``, scale and bias stay; ``more`` are further fields.
        """
        replaced = Features.from_rows(image, self.text, self.logit_scale, self.logit_bias, **more)
        return dataclasses.replace(replaced, text=self.text)

    def view_caption_pairs(self) -> list[Features]:
        """Return features of one view and one caption each, for all V x C pairs, view by view."""
        image, text = self.raw or (self.image, self.text)
        views = (image,) if self.views is None else self.views.unbind(1)
        captions = (text,) if self.captions is None else self.captions.unbind(1)
        if len(views) == 1 and len(captions) == 1:
            return [self]
        shared = dataclasses.replace(self, views=None, captions=None)
        pairs = []
        for view in views:
            for caption in captions:
                pair = dataclasses.replace(
                    shared,
                    image=F.normalize(view, dim=-1),
                    text=F.normalize(caption, dim=-1),
                    raw=(view, caption),
                )
                pairs.append(pair)
        return pairs

    def __getitem__(self, order: Tensor) -> Features:
        """Return the same features, of pairs, with all rows in another order [B]."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and value.ndim:
                changes[field.name] = value[order]
        if self.raw is not None:
            image, text = self.raw
            changes["raw"] = (image[order], text[order])
        if self.words is not None:
            changes["words"] = self.words[order]
        return dataclasses.replace(self, **changes)


def to_full_precision(rows: Tensor) -> Tensor:
    """Return rows of half precision in float32, others as they are."""
    if rows.dtype in (torch.float16, torch.bfloat16):
        return rows.float()
    return rows
