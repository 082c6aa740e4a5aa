"""Trainable heads of DeCLIP's and SLIP's terms; none of them is part of the finished model.

Batch normalization always uses the statistics of the batch at hand, so no running statistics are
kept. A loss sees the rows of all processes, so these are of the whole batch, where the releases
normalize each process's rows alone.
"""

from __future__ import annotations

import itertools

from torch import nn

from dimefm.losses._modules import FeatureDims


def _perceptron(*widths: int, last_norm: bool = False) -> nn.Sequential:
    """Linear maps between ``widths``, with batch normalization and ReLU between them.

    ``last_norm`` adds batch normalization at the end.
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after))
        layers.append(_batch_norm(after))
        layers.append(nn.ReLU())
    layers.pop()  # the last ReLU
    if not last_norm:
        layers.pop()
    return nn.Sequential(*layers)


def _batch_norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, track_running_stats=False)


def projector(dims: FeatureDims, width: int) -> nn.Module:
    """SimSiam's projection [B, D] -> [B, width]: three linear maps with batch normalization."""
    return _perceptron(dims.student, width, width, width, last_norm=True)


def predictor(dims: FeatureDims, width: int) -> nn.Module:
    """SimSiam's prediction [B, width] -> [B, width] of one view's projection from another's.

    It goes through half the width.
    """
    return _perceptron(width, width // 2, width)


def simclr_head(dims: FeatureDims, width: int, dim: int) -> nn.Module:
    """SLIP's projection of features before the last projection: [B, W] -> [B, dim]."""
    hidden = _known(dims.hidden)
    return _perceptron(hidden, width, width, dim)


def word_head(dims: FeatureDims) -> nn.Module:
    """A linear map with bias from states of words [M, W] to logits of the vocabulary."""
    words = _known(dims.words)
    vocabulary = _known(dims.vocabulary)
    return nn.Linear(words, vocabulary)


def image_mapping(dims: FeatureDims, width: int) -> nn.Module:
    """A linear map with bias of patches [B, P, W] to [B, P, width]."""
    patches = _known(dims.patches)
    return nn.Linear(patches, width)


def text_mapping(dims: FeatureDims, width: int) -> nn.Module:
    """A linear map with bias of states of words [B, L, W] to [B, L, width]."""
    words = _known(dims.words)
    return nn.Linear(words, width)


def patch_projection(dims: FeatureDims) -> nn.Module:
    """A linear map with bias of patches [B, P, W] to the teacher's dimension."""
    patches = _known(dims.patches)
    return nn.Linear(patches, dims.teacher)


def word_projection(dims: FeatureDims) -> nn.Module:
    """A linear map with bias of states of words [B, L, W] to the teacher's dimension."""
    words = _known(dims.words)
    return nn.Linear(words, dims.teacher)


def _known(width: int | None) -> int:
    """Return a dimension that a head needs; raise ValueError when it is not known."""
    if width is None:
        raise ValueError("a head on features whose width is not known; expected it in FeatureDims")
    return width
