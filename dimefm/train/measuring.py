"""The first rows of a run, as a larger model takes them, to measure what counts in it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import DataError
from dimefm.models.encoder import Encoder
from dimefm.models.initial import Side
from dimefm.recipe import Recipe
from dimefm.train.tasks import Task

ROWS = 256
MOST_BATCHES = 64  # that are looked through for so many rows


def inputs_of(
    recipe: Recipe, task: Task, encoder: Encoder, teacher: nn.Module, side: Side
) -> Tensor:
    """Return the run's first rows: pixels [N, 3, S, S] of the teacher's size, or tokens [N, L].

    All processes have the same rows. Raises DataError when none can be read.
    """
    load = copy.copy(task.batches)
    load.places = range(recipe.batch_size)  # type: ignore[attr-defined]
    parts: list[Tensor] = []
    count = 0
    for number in range(MOST_BATCHES):
        batch = load(number)
        part = batch.pixels if side == "image" else batch.tokens
        if part is not None and len(part):
            rows = part.flatten(0, -4) if side == "image" else part.flatten(0, -2)
            parts.append(rows)
            count += len(rows)
        if count >= ROWS:
            break
    if not parts:
        raise DataError(
            "inherit_by = 'importance': no row can be read, expected some. Fix: correct the"
            " sources, or set inherit_by = 'first'"
        )
    rows = torch.cat(parts)[:ROWS]
    if side == "text":
        return _tokens(rows, teacher)
    return _pixels(rows, encoder)


def _pixels(rows: Tensor, encoder: Encoder) -> Tensor:
    """Return uint8 pixels [N, S, S, 3] as an encoder takes them."""
    preprocess = encoder.image_preprocess
    pixels = rows.permute(0, 3, 1, 2).float() / 255
    pixels = F.interpolate(pixels, size=encoder.image_size, mode="bicubic", antialias=True)
    mean = torch.tensor(preprocess["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(preprocess["std"]).view(1, 3, 1, 1)
    return (pixels.clamp(0, 1) - mean) / std


def _tokens(rows: Tensor, teacher: nn.Module) -> Tensor:
    """Return tokens [N, L] of the teacher's length."""
    tower = getattr(teacher, "text", teacher)
    length = int(getattr(tower, "context_length", rows.shape[1]))
    return F.pad(rows, (0, max(0, length - rows.shape[1])))[:, :length]
