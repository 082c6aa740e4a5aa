"""Heads that DeCLIP's and SLIP's terms learn beside the student; none of them is a part of what
comes out.

Batch normalisation is by the batch at hand, always, so no running statistics are kept. A loss sees
the rows of all processes, so it is by the whole batch, where the releases normalise each process's
rows alone.
"""

from __future__ import annotations

from torch import nn

from dimefm.losses._modules import FeatureDims


def _perceptron(*widths: int, last_norm: bool = False) -> nn.Sequential:
    """Linear maps between ``widths``, batch normalisation and ReLU between them, and normalisation
    behind all if asked.
    """
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), _norm(after), nn.ReLU()]
    return nn.Sequential(*layers[: -1 if last_norm else -2])


def _norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, track_running_stats=False)


def projector(widths: FeatureDims, width: int) -> nn.Module:
    """SimSiam's projection of the student's rows [B, D] to [B, width]: three linear maps, each with
    batch normalisation.
    """
    return _perceptron(widths.student, width, width, width, last_norm=True)


def predictor(widths: FeatureDims, width: int) -> nn.Module:
    """SimSiam's prediction [B, width] → [B, width] of one view's projection from another's, by way
    of half the width.
    """
    return _perceptron(width, width // 2, width)


def simclr_head(widths: FeatureDims, width: int, dim: int) -> nn.Module:
    """SLIP's projection of features before the last projection [B, W] to [B, dim]: three linear
    maps.
    """
    return _perceptron(_known(widths.hidden), width, width, dim)


def word_head(widths: FeatureDims) -> nn.Module:
    """A linear map with bias from states of words [M, W] to logits of the vocabulary."""
    return nn.Linear(_known(widths.words), _known(widths.vocabulary))


def image_mapping(widths: FeatureDims, width: int) -> nn.Module:
    """A linear map with bias of patches [B, P, W] to [B, P, width]."""
    return nn.Linear(_known(widths.patches), width)


def text_mapping(widths: FeatureDims, width: int) -> nn.Module:
    """A linear map with bias of states of words [B, L, W] to [B, L, width]."""
    return nn.Linear(_known(widths.words), width)


def patch_projection(widths: FeatureDims) -> nn.Module:
    """A linear map with bias of patches [B, P, W] to the teacher's dimension."""
    return nn.Linear(_known(widths.patches), widths.teacher)


def word_projection(widths: FeatureDims) -> nn.Module:
    """A linear map with bias of states of words [B, L, W] to the teacher's dimension."""
    return nn.Linear(_known(widths.words), widths.teacher)


def _known(width: int | None) -> int:
    if width is None:
        raise ValueError("a head on features whose width is not known; expected it in FeatureDims")
    return width
