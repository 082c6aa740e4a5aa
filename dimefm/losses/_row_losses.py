"""The losses of rows of scores, with their gradients; see :class:`RowLoss`.

All of them work in the memory of the scores, as they may.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dimefm.losses._chunked import RowLossOutput, ScratchScores


def kl(scores: ScratchScores) -> RowLossOutput:
    """KL(teacher || student) of log-probabilities."""
    student = scores.student
    teacher = scores.teacher
    target = teacher.exp()
    loss = teacher.sub_(student).mul_(target).sum()
    gradient = student.exp_().sub_(target)
    return RowLossOutput(loss, gradient)


def soft_cross_entropy(scores: ScratchScores) -> RowLossOutput:
    """Cross-entropy of the student's log-probabilities under the teacher's probabilities."""
    student = scores.student
    target = scores.teacher.exp_()
    loss = -(target * student).sum()
    gradient = student.exp_().sub_(target)
    return RowLossOutput(loss, gradient)


def positive(scores: ScratchScores) -> RowLossOutput:
    """Minus the log-probability of column i in row i."""
    log_probabilities = scores.student
    loss = -log_probabilities.diagonal(scores.first).sum()
    gradient = log_probabilities.exp_()
    gradient.diagonal(scores.first).sub_(1)
    return RowLossOutput(loss, gradient)


@dataclass(frozen=True)
class PositiveWithDuplicates:
    """``positive`` of similarities, without columns of the row's own id among its negatives."""

    ids: Tensor  # [K]

    def __call__(self, scores: ScratchScores) -> RowLossOutput:
        similarities = scores.student
        row_ids = self.ids[scores.rows, None]
        duplicates = row_ids == self.ids
        duplicates.diagonal(scores.first).fill_(False)
        similarities.masked_fill_(duplicates, -torch.inf)
        log_probabilities = similarities.log_softmax(1)
        return positive(ScratchScores(scores.first, log_probabilities))


@dataclass(frozen=True)
class Labelled:
    """Minus the log-probability of the labelled column."""

    labels: Tensor  # [Q]

    def __call__(self, scores: ScratchScores) -> RowLossOutput:
        log_probabilities = scores.student
        labels = self.labels[scores.rows, None]
        loss = -log_probabilities.gather(1, labels).sum()
        minus_one = log_probabilities.new_full((), -1.0)
        gradient = log_probabilities.exp_()
        gradient.scatter_add_(1, labels, minus_one.expand(labels.shape))
        return RowLossOutput(loss, gradient)


def other_view(scores: ScratchScores) -> RowLossOutput:
    """Cross-entropy of similarities [C, 2 B]: row i finds column i + B (or i - B), not itself."""
    similarities = scores.student
    similarities.diagonal(scores.first).fill_(-torch.inf)
    count = similarities.shape[1]
    half = count // 2
    columns = torch.arange(half, count + half, device=similarities.device)
    find_view = Labelled(columns % count)
    log_probabilities = similarities.log_softmax(1)
    return find_view(ScratchScores(scores.first, log_probabilities))


def sigmoid(scores: ScratchScores) -> RowLossOutput:
    """Binary cross-entropy of logits: column i is the pair of row i, all others are not."""
    pair_logits = scores.student
    positives = pair_logits.diagonal(scores.first)
    loss = F.softplus(pair_logits).sum() - positives.sum()
    gradient = pair_logits.sigmoid_()
    gradient.diagonal(scores.first).sub_(1)
    return RowLossOutput(loss, gradient)
